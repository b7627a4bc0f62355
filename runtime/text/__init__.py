"""Text: turns of a conversation become token ids, and token ids become the text of an answer."""

"""Text: turns of a conversation become token ids, and token ids become the text of an answer.

* ``turns``: who said what. ``chat_format``: the chat template as pieces of text.
* ``chat_prompt``: the tokenizer. ``stops``: the text of an answer up to a stop string.
"""

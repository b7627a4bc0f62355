"""Turns of a conversation to token ids, and token ids to the text of an answer."""

"""The language model: prompt rows, kv cache, prefill with in-LLM pruners, decoding, and the choice of the next token."""

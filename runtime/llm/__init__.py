"""The language model: prompt rows, kv cache, prefill with in-LLM pruners, decode, and the next token."""

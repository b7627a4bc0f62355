"""The language model: prompt rows, kv cache, prefill with in-LLM pruners, decode, and the next token.

* ``decoder``: prefill and decode. ``segment``: a part of the decoder with the in-LLM pruner after it.
  ``kv_cache``: its cache.
* ``prompt_items``: token ids and images. ``visual_tokens``: an image's tokens. ``prompt_rows``: facts about
  each row. ``budget``: how many tokens stay.
* ``generation``: settings. ``logits``, ``penalties``, ``sampling``: from logits to the next token.
"""

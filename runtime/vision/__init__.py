"""The stages before the language model: vision encoder and pre-LLM pruner.

* ``stages``: what they do, in order. ``features``: an image before and after the vision encoder.
* ``question``: what the pruner reads of the question. ``pre_llm_pruner``: the pruner at work.
* ``pieces``: what is left of the pieces of an image, and how they are joined.
"""

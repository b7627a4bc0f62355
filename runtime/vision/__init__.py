"""The stages before the language model: vision encoder and pre-LLM pruner."""

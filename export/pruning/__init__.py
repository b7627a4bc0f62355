"""The base classes of pruning methods. The methods themselves are in ``export/methods``.

``method`` has the options and budgets of a pre-LLM pruner, ``in_llm`` those of an in-LLM pruner, ``combined``
joins one of each. ``selection`` holds the ranking, similarity and gathering that methods share.
"""

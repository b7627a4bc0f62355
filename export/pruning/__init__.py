"""The base classes of pruning methods, and what methods share. The methods are in ``export/methods``.

* Base classes: ``method`` (every method), ``encoder_merging``, ``pre_llm``, ``in_llm`` with ``prompt_state``,
  and ``combined`` (one of each of the last two).
* Facts about a method: ``options``, ``budgets``, ``taps``.
* Functions on tensors: ``selection``, ``similarity``, ``merging``.
"""

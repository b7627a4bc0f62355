"""Factors that make a model easier to quantize.

* ``awq``, ``smoothquant``: the factors of an input, from its statistics and the matrices that read it.
* ``fold``: the weights of a model with factors folded in.
"""

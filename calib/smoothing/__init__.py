"""Factors that make a model easier to quantize: AWQ, SmoothQuant, and folding them into neighbouring
layers."""

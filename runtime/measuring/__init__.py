"""Measures a compiled bundle: times and memory (``bench``), the cost of tokens (``costs``), energy (``energy``)."""

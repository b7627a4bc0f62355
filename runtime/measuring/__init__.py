"""Measure a compiled bundle: times and memory (``bench``), cost of tokens (``costs``), energy (``energy``)."""

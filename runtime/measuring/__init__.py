"""Measurements of a bundle: times and memory (``bench``), energy (``energy``), cost of tokens (``costs``)."""

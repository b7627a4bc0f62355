"""Estimates memory and speed of a model on a device before anything is built."""

"""CUDA of a machine that has none. See ``cuda_double``."""

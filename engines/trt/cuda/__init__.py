"""CUDA as the engines of TensorRT use it.

* ``device``: the GPU, one stream, and a pool of memory that is reused
"""

"""CUDA as the engines of TensorRT use it.

* ``gpu``: the GPU, through cuda-python or through ``libcudart``; ``requirement``: which cuda-python
* ``device``: one stream, and a pool of memory that is reused
"""

"""CUDA as the engines of TensorRT use it.

* ``gpu``: the GPU, through cuda-python or through ``libcudart``; ``requirement``: which cuda-python
* ``device``: one stream and its buffers, whose memory is reused through ``pool``
* ``step_graphs``: decode steps as CUDA graphs
"""

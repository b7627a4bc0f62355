"""A module ``tensorrt`` without TensorRT: strict about how it is called, and right about what it computes.

* ``binding``: the module, its enumerations, and the faults that tests ask for
* ``builder``: a parser, a network and a builder, whose plans hold the ONNX file
* ``runtime``: engines and contexts, which demand the documented order of calls, check addresses, dtypes,
  alignment and aliases, and compute with ONNX Runtime on the addresses that they are given

Work is queued on the stream of a ``cuda_double.Cuda``.
"""

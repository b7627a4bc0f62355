"""TensorRT and TensorRT for RTX: builds an engine from a graph, and runs it on the GPU.

* ``target``: the names for ``--target``, and the options
* ``backend``: versions, GPUs, and the start of a build
* ``builder``: a graph into a plan, in a process of its own, with ``profiles``, ``onnx_dims``, ``logger``,
  ``timing_cache`` and ``plan_file``
* ``runner``: a plan that runs on the GPU, in its ``contexts``, through ``cuda``; ``plan_check``
* ``library``, ``limits``, ``workarounds``: the bindings, what TensorRT cannot do, and what some versions
  do wrongly

The bindings have no types, so their objects are ``Any`` in signatures.
"""

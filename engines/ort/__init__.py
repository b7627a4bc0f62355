"""ONNX Runtime: compiles a graph to an optimized model with prepacked weights, and runs it.

* ``target``: the name for ``--target``, and the options
* ``backend``: versions and machines
* ``compile``: a graph into an optimized model, in a process of its own
* ``session``: a model that runs
* ``providers``: the CPU or CUDA, and what CUDA needs
* ``library``: the import of onnxruntime, and what to do if it fails
* ``page_release``: memory that is not needed after loading
"""

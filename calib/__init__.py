"""Calibration and quantization, on the host.

* ``samples``: images with prompts. ``scenes``: the built-in ones.
* ``input_groups``: the matrices of a layer that read the same input.
* ``activation_watch``, ``statistics``: what a layer's inputs look like, and the file that keeps it.
* ``smoothing``: factors that make a model easier to quantize.
* ``schemes``: int4, int8 and fp8. ``graph_values``: facts about an ONNX graph that they need.
"""

import foveate.engines  # noqa: F401  (before any library: it switches ONNX Runtime's telemetry off)

"""Host side: a checkpoint and a pruning method become a bundle. Needs the extra ``export``.

From bottom to top; each line imports only what is above it:

* ``spec``: sizes of a model. ``lowering``: the dialects of graphs.
* ``networks``: torch modules.
* ``checkpoints``: files and tensors. ``model_parts``: a model in pieces. ``pruning``: bases of methods.
* ``settings``: a bundle's settings, from a checkpoint's. ``methods``: the pruning methods.
* ``keys``: checks a checkpoint's settings files. ``graphs``: a model with a method, as ONNX graphs.
* ``other_checkpoints``: CLIP and trained pruners. ``bundling``: writes a bundle's files.
* ``models``: the families. ``calibration``: statistics for quantization.
* ``build_bundle``: the steps from a model's parts and a method to a bundle.
* ``build``: the command ``foveate build``. ``optimum_cli``: the same for Hugging Face's optimum.
"""

from __future__ import annotations

import os

import foveate.engines  # noqa: F401  (before any library: it switches ONNX Runtime's telemetry off)

# huggingface_hub tells the hub with each request what else is installed here, unless this is set before its
# import.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

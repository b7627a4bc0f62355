"""Host side: a checkpoint and a pruning method become a bundle. Needs the extra ``export``."""

from __future__ import annotations

import os

import foveate.engines  # noqa: F401  (before any library: it switches ONNX Runtime's telemetry off)

# huggingface_hub tells the hub with each request what else is installed here, unless this is set before its
# import.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

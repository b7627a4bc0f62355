"""Host side: a checkpoint and a pruning method become a bundle. Needs the extra ``export``."""

from __future__ import annotations

import os

import foveate.engines  # noqa: F401  (before any library: it switches ONNX Runtime's telemetry off)

# Of huggingface_hub: what else is installed here goes to the hub with each request. It reads this when it is imported.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

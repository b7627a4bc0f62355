"""Samples and statistics, quantization schemes, synthetic scenes."""

import foveate.engines  # noqa: F401  (before any library: it switches ONNX Runtime's telemetry off)

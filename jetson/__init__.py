"""Devices: plan, doctor, pack, deploy, power modes."""

import foveate.engines  # noqa: F401  (before any library: it switches ONNX Runtime's telemetry off)

"""Commands for devices: plan, doctor, pack, deploy and power."""

import foveate.engines  # noqa: F401  (first, since it switches ONNX Runtime's telemetry off)

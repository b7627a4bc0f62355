"""Graph specifications and the backends that compile and run graphs.

* ``spec``: inputs and outputs of a graph; ``buffer``, ``row_gather``: what is passed to it
* ``engine``: a graph that runs; ``prefill_switch``, ``topk_logits``: two additions to one
* ``backend``: the interface of a backend; ``targets``: all of them; ``workarounds``: known faults
* ``ort``, ``trt``: the backends
* ``disk``, ``errors``, ``child``, ``hidden_install``: what everything above needs

Importing this package switches ONNX Runtime's telemetry off.

From 1.29 on ONNX Runtime reports to its vendor by default, on Linux too. Importing it writes a device id and
an event database into the user's home, and one of its threads contacts the vendor's collector. Only the
variable ``ORT_DISABLE_TELEMETRY`` prevents this, and only if it is set before the library is loaded. Tried
with 1.29 to 1.32: setting it later and calling ``disable_telemetry_events()`` change nothing. Child processes
inherit the variable. A value that the user has set is kept, "0" included.
"""

from __future__ import annotations

import os
import sys
import warnings

from foveate.engines.hidden_install import warn_of_hidden

__all__ = ["NO_TELEMETRY", "switch_telemetry_off"]

NO_TELEMETRY = "ORT_DISABLE_TELEMETRY"


def switch_telemetry_off() -> None:
    """Set the variable ``NO_TELEMETRY`` unless the user has set it. Warn once if it is too late."""
    if NO_TELEMETRY in os.environ:
        return
    os.environ[NO_TELEMETRY] = "1"
    if "onnxruntime" in sys.modules:
        warnings.warn(
            "onnxruntime was imported before foveate, so its telemetry cannot be switched off any more: "
            "from 1.29 on it reports to its vendor. "
            f"Import foveate first, or set {NO_TELEMETRY}=1 before Python starts.",
            RuntimeWarning,
            stacklevel=3,
        )


switch_telemetry_off()
warn_of_hidden()

"""Graph specifications and backends, one file each. Importing it switches ONNX Runtime's telemetry off.

ONNX Runtime reports to its vendor by default from 1.29 on, on Linux too: importing it writes a device id and an event
database below the user's home, and a thread of it asks for the vendor's collector. Only this variable helps, and only
before its library is loaded (tried with 1.29 to 1.32: a later setting and ``disable_telemetry_events()`` change
nothing). Children inherit it. A value that the user has set stays, "0" included.
"""

from __future__ import annotations

import os
import sys
import warnings

from foveate.engines.hidden_install import warn_of_hidden

__all__ = ["NO_TELEMETRY", "switch_telemetry_off"]

NO_TELEMETRY = "ORT_DISABLE_TELEMETRY"


def switch_telemetry_off() -> None:
    """Set the variable ``NO_TELEMETRY`` unless the user did; one warning where it comes too late."""
    if NO_TELEMETRY in os.environ:
        return
    os.environ[NO_TELEMETRY] = "1"
    if "onnxruntime" in sys.modules:
        warnings.warn(
            "onnxruntime was imported before foveate, so its telemetry cannot be switched off any more: from 1.29 on it "
            f"reports to its vendor. Import foveate first, or set {NO_TELEMETRY}=1 before Python starts.",
            RuntimeWarning,
            stacklevel=3,
        )


switch_telemetry_off()
warn_of_hidden()

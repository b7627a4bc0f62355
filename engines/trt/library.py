"""The Python modules of TensorRT's two bindings."""

from __future__ import annotations

__all__ = ["LIBRARY"]

LIBRARY = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
"""Target -> the module of its binding."""

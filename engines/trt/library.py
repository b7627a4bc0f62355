"""The Python modules of TensorRT's two bindings, and the dialects that TensorRT takes."""

from __future__ import annotations

__all__ = ["DIALECTS", "LIBRARY"]

LIBRARY = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
"""Target -> the module of its binding."""

DIALECTS = ("native", "primitive")
"""Dialects that the newest version takes, best first."""

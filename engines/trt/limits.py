"""Documented limits of TensorRT."""

from __future__ import annotations

__all__ = ["LARGEST_SORT"]

LARGEST_SORT = 3840
"""Largest k of TensorRT's TopK."""

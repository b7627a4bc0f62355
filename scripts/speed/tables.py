"""Cells of the tables that the measurements print."""

from __future__ import annotations

import statistics
from collections.abc import Iterable

__all__ = ["spread"]


def spread(times: Iterable[float], digits: int, scale: float = 1) -> str:
    """Return the median of ``times``, multiplied by ``scale``, with the fastest and the slowest."""
    scaled = [time * scale for time in times]
    ends = f"{min(scaled):.{digits}f}..{max(scaled):.{digits}f}"
    return f"{statistics.median(scaled):.{digits}f} ({ends})"

"""none: every visual token; the unpruned baseline.

The bundle has no pruner graph.
"""

from __future__ import annotations

from dataclasses import dataclass

from foveate.export.pruning.method import SingleMethod

__all__ = ["Method"]


@dataclass(frozen=True)
class Method(SingleMethod):
    """No pruning."""

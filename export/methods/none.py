"""none: every visual token; the unpruned baseline.

The bundle has no pruner graph.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from foveate.export.pruning import method

__all__ = ["Method"]


@dataclass(frozen=True)
class Method(method.Method):
    """No pruning."""

    prunes: ClassVar[bool] = False

    def reduce(
        self, tokens: Tensor, taps: dict[str, Tensor], keep: method.Keep, grid: tuple[int, int]
    ) -> tuple[Tensor, Tensor, Tensor]:
        kept = torch.arange(tokens.shape[1], device=tokens.device).repeat(tokens.shape[0], 1)
        return tokens, kept, method.count(kept)

"""random: a random subset, the same for every image; a lower bound.

Integer arithmetic in the graph makes pseudo-random scores of the seed and the token's index. The scores are
the same on every engine and need no table.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from foveate.export.pruning.options import option
from foveate.export.pruning.pre_llm import ScoringPruner
from foveate.export.pruning.selection import Keep

__all__ = ["Method"]

_PRIME = 2**31 - 1  # squares of residues fit int64


@dataclass(frozen=True)
class Method(ScoringPruner):
    """Random tokens, selected by ``seed``. A larger ``keep`` with the same seed keeps a superset."""

    seed: int = option(0, 0, 2**31 - 2)

    def score(self, tokens: Tensor, taps: dict[str, Tensor], keep: Keep, grid: tuple[Keep, Keep]) -> Tensor:
        x = torch.arange(1, tokens.shape[1] + 1, device=tokens.device) * 48271
        for constant in (self.seed + 1, 16807 * (self.seed + 7) % _PRIME, 69621):
            x = (x * x + 48271 * x + constant) % _PRIME
        return (x // 128).float().repeat(tokens.shape[0], 1)  # 24 bits: exact in float32

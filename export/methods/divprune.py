"""divprune: the most diverse tokens: greedy max-min of cosine distance.

DivPrune (Alvar, Singh, Akbari, Zhang, "DivPrune: Diversity-based Visual Token Pruning for Large Multimodal
Models", CVPR 2025, arXiv 2503.02175), after the published code. It solves the max-min diversity problem
greedily and reads neither attention nor question.

Input: the projected tokens ``[B,N,D]``, as published. Output: exactly ``keep`` tokens, in raster order.

1. d(i,j) = 1 - cosine of tokens i and j.
2. Pick the token whose nearest other token is farthest away.
3. Pick, ``keep`` - 1 times, the token whose nearest *picked* token is farthest away.

Our reading: a picked token is never picked again. The published code relies on its distance of 0, and picks
tokens twice when only copies are left. Of equal distances the first token wins; distances within 2^-22 count
as equal.

The published budget is 0.098 of the tokens. Positions are renumbered. All tokens of a tiled image are pruned
together, as published.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from foveate.export.pruning import selection, similarity
from foveate.export.pruning.pre_llm import PreLLMPruner
from foveate.export.pruning.selection import Keep

__all__ = ["Method"]


@dataclass(frozen=True)
class Method(PreLLMPruner):
    """Max-min diversity. It has no options of its own."""

    whole: ClassVar[bool] = True

    def reduce(
        self, tokens: Tensor, taps: dict[str, Tensor], keep: Keep, grid: tuple[Keep, Keep]
    ) -> tuple[Tensor, Tensor, Tensor]:
        distance = 1 - similarity.cosines(tokens)
        index = torch.arange(tokens.shape[1], device=tokens.device)
        alone = torch.where(index[:, None] == index, similarity.FAR, distance).amin(1)
        first = selection.first_of(alone) == index
        rest = torch.full((tokens.shape[0], 1), keep - 1, dtype=torch.int64, device=tokens.device)
        kept = selection.marked(first | selection.pick_farthest(distance, first, rest), keep)
        return selection.gather(tokens, kept), kept, selection.count(kept)

"""hiprune: tokens with the most received attention in a middle layer, their neighbours, then by a deep layer.

HiPrune (Liu et al., "HiPrune: Training-Free Visual Token Pruning via Hierarchical Attention in
Vision-Language Models", arXiv 2508.00553), after the published code. Middle layers of a vision encoder attend
to objects, deep layers to the image as a whole. The question is not read.

Input: the attention that each patch receives (mean over heads and all queries) in a middle layer and in the
last one, each ``[B,N]``. The publication selects features before the projector. The projector maps each token
by itself, so selecting the projected tokens ``[B,N,D]`` is the same. Output: exactly ``keep`` tokens, in
raster order.

1. *Anchors*: the round(keep alpha / 5) tokens that receive most in the middle layer. Halves are rounded to
   even, as in Python.
2. *Buffers*: the neighbours i - 1, i + 1, i - columns, i + columns of each anchor. As in the published code,
   they are clamped to the first and last token and rows are not checked. The left neighbour of a row's first
   patch is therefore the last patch of the row above, and an anchor in the first row adds the first token.
3. *Register*: the tokens among all others that receive most in the last layer.

``layer`` is the middle layer, counted from 0. The default is 8, as published for the 24 layers of CLIP ViT-L
(of which 23 run), and in proportion for encoders of another depth; for Qwen2.5-VL this gives the published 15
of 32. alpha = 0.1 at every budget. Positions are renumbered, as published for LLaVA. Our reading: when
anchors and buffers exceed the budget (the published code fails), anchors have priority, then buffers, each
ordered by the last layer.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from foveate.export.pruning import selection
from foveate.export.pruning.options import option
from foveate.export.pruning.pre_llm import ScoringPruner
from foveate.export.pruning.selection import Keep
from foveate.export.pruning.taps import full_layer, tap
from foveate.export.spec import ModelSpec

__all__ = ["Method"]


@dataclass(frozen=True)
class Method(ScoringPruner):
    """Hierarchical attention. The module's docstring explains the options."""

    alpha: float = option(0.1, 0, 1)
    layer: int | None = None
    deep_layer: int = -1

    def taps(self, spec: ModelSpec) -> tuple[str, ...]:
        middle = full_layer(spec, 8 / 23) if self.layer is None else self.layer
        names = [tap(spec, "received_attention", layer) for layer in (middle, self.deep_layer)]
        return tuple(dict.fromkeys(names))  # both are the same if the encoder has one layer

    def score(self, tokens: Tensor, taps: dict[str, Tensor], keep: Keep, grid: tuple[Keep, Keep]) -> Tensor:
        middle, deep = next(iter(taps.values())), [*taps.values()][-1]
        size = tokens.shape[1]
        fifths = torch.full((1,), keep, dtype=torch.int64, device=tokens.device) * round(self.alpha * 10**6)
        anchor = selection.rank(middle.float()) < _divide(fifths, 5 * 10**6)
        buffer = _neighbours(anchor.float(), grid[1]) > 0
        tier = torch.where(anchor, 2.0 * size, torch.where(buffer, 1.0 * size, 0.0))
        return tier - selection.rank(deep.float())


def _divide(a: Tensor, b: int) -> Tensor:
    """Divide integers, rounding halves to even."""
    whole, rest = a // b, 2 * (a % b)
    return whole + ((rest > b) | ((rest == b) & (whole % 2 == 1))).to(torch.int64)


def _neighbours(mask: Tensor, columns: Keep) -> Tensor:
    """Return numbers above 0 at the tokens before, behind, above and below the marked ones of ``mask [B,N]``.

    Neighbours outside the grid are clamped to the first or last token.
    """
    size = mask.shape[1]
    index = torch.arange(size, device=mask.device)
    total = torch.zeros_like(mask)
    for step in (1, columns):
        for there in (index + step, index - step):
            found = mask.index_select(1, there.clamp(min=0, max=size - 1))
            total = total + torch.where((there >= 0) & (there < size), found, 0.0)
        for end, outside in ((0, index < step), (size - 1, index >= size - step)):
            clamped = torch.where(outside, mask, 0.0).amax(1, keepdim=True)
            total = total + torch.where(index == end, clamped, 0.0)
    return total

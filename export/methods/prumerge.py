"""prumerge: outliers of the class token's attention, each with similar tokens added, and one sum of the rest.

LLaVA-PruMerge (Shang et al., "LLaVA-PruMerge: Adaptive Token Reduction for Efficient Large Multimodal
Models", ICCV 2025, arXiv 2403.15388), after the published code. It acts before the projector. The question is
not read.

Input: patch features x ``[B,N,Dv]``, the class token's attention a ``[B,N]`` and the keys ``[B,N,dk]`` (mean
over heads) of one layer. Output: **at most** ``keep`` rows (``count``), which are not in raster order.
Outliers come first, by falling attention, then samples in raster order, then the sum of the rest, whose
``kept`` is -1.

1. *Outliers*: the n tokens with a(i) > Q3 + 1.5 (Q3 - Q1), where Q1 and Q3 are quartiles of a. n depends on
   the image.
2. *Merging*: each token i that stays gets the ``neighbours`` other tokens j with the most similar keys
   (cosine) added: x(i) + sum of a(j) x(j). As in the published code, the sum is not divided by its weights, a
   token may be added to several rows, and tokens that stay are added to one another, too.
3. *Rest*: one more row is the sum of a(j) x(j) over all tokens that do not stay.

``variant`` "fixed" keeps the keep - 1 tokens of the highest attention instead of the outliers, so every image
has exactly ``keep`` rows. (The publication does not count the last row: its 72 tokens of 576 are ``keep`` =
73.) "plus" is PruMerge+: besides the outliers, every s-th of the first N - 1 tokens stays, s = (N // n) // 3.

Our reading:

* Attention and keys are those of the last layer that runs, which also gives the features, in the form in
  which other methods read them (attention: mean over heads). The published code takes them from the next
  layer, which LLaVA does not run, as if the layer had a single head.
* ``keep`` is an upper bound, which the publication lacks. It drops the outliers of the lowest attention and
  makes s larger.
* s is at least 1. Without outliers s is that of one outlier.
* ``keep`` = N keeps every token and has no sum.
* If there are fewer tokens than ``neighbours``, all are added. Cosines within 2^-22 are equal; the first of
  equals wins.
* ``owner`` names one row for a token that was added to several rows: the row with the most similar key.
* Positions are renumbered.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from foveate.export.pruning import selection, similarity
from foveate.export.pruning.options import option
from foveate.export.pruning.pre_llm import PreLLMPruner
from foveate.export.pruning.selection import Keep
from foveate.export.pruning.taps import tap
from foveate.export.spec import ModelSpec

__all__ = ["Method"]


@dataclass(frozen=True)
class Method(PreLLMPruner):
    """Outliers and merging. The module's docstring explains the options."""

    source: ClassVar[Literal["projected", "features"]] = "features"
    merges: ClassVar[bool] = True

    variant: Literal["adaptive", "fixed", "plus"] = "adaptive"
    neighbours: int = option(32, 0, 4096)
    layer: int = -1

    @property
    def fills(self) -> bool:
        return self.variant == "fixed"

    def taps(self, spec: ModelSpec) -> tuple[str, ...]:
        return tap(spec, "cls_attention", self.layer), tap(spec, "keys", self.layer)

    def reduce(
        self, tokens: Tensor, taps: dict[str, Tensor], keep: Keep, grid: tuple[Keep, Keep]
    ) -> tuple[Tensor, ...]:
        attention, keys = taps.values()
        attention, size = attention.float(), tokens.shape[1]
        budget = torch.full((tokens.shape[0], 1), keep, dtype=torch.int64, device=tokens.device)
        whole = budget == size  # every token stays, and no row for the rest
        tier = self._tiers(attention, budget)
        stays = (tier > 0) | whole
        tier = torch.cat([torch.where(whole, 1, tier), (~whole).to(torch.int64)], 1)
        place = selection.in_order(tier, keep)  # [B,R], N is the row for the rest
        count = (tier > 0).to(torch.int64).sum(1)
        valid = torch.arange(keep, device=tokens.device) < count[:, None]
        kept = torch.where(valid & (place < size), place, -1)

        similar = similarity.cosines(selection.gather(_with_zero(keys), place), keys)  # [B,R,N]
        added = _nearest(similar, place, self.neighbours) & ((kept >= 0) & ~whole)[:, :, None]
        summed = (valid & (place == size))[:, :, None] & ~stays[:, None, :]
        share = torch.where(added | summed, attention[:, None, :], 0.0)
        rows = selection.gather(_with_zero(tokens), place).float() + torch.matmul(share, tokens.float())
        rows = torch.where(valid[:, :, None], rows, 0.0).to(tokens.dtype)
        return rows, kept, count, _owner(similar, added, kept, count)

    def _tiers(self, attention: Tensor, budget: Tensor) -> Tensor:
        """Return ``[B,N]`` int64: above 1 for tokens that stay, higher ones first; 0 for the others."""
        size = attention.shape[1]
        rank, number = selection.rank(attention), budget - 1
        if self.variant != "fixed":
            number = torch.minimum(selection.outliers(attention), number)
        top = rank < number
        tier = torch.where(top, 2 + size - rank.to(torch.int64), 0)
        if self.variant != "plus":
            return tier
        room = budget - 1 - number
        step = torch.maximum(size // number.clamp(min=1) // 3, (size + room - 1) // room.clamp(min=1))
        index = torch.arange(size, device=attention.device)
        samples = (index % step.clamp(min=1) == 0) & (index < size - 1) & (room > 0)
        return torch.where(samples & ~top, 2, tier)


def _with_zero(x: Tensor) -> Tensor:
    """Append a row of zeros to ``x [B,N,d]``."""
    return torch.cat([x, torch.zeros_like(x[:, :1])], 1)


def _nearest(similar: Tensor, place: Tensor, number: int) -> Tensor:
    """Mark the ``number`` highest entries of each row of ``similar [B,R,N]``: ``[B,R,N]`` bool.

    The first of equals wins. A row's own token, ``place [B,R]``, is left out.
    """
    size = similar.shape[2]
    index = torch.arange(size, device=similar.device)
    itself = place[:, :, None] == index
    similar = torch.where(itself, -similarity.FAR, similar)
    falling = similar.topk(size, dim=2).values
    last = torch.where(index < number, falling, similarity.FAR).amin(2, keepdim=True)
    above, equal = similar > last, similar == last
    room = number - above.float().sum(2, keepdim=True)
    return (above | (equal & (equal.float().cumsum(2) <= room))) & ~itself


def _owner(similar: Tensor, added: Tensor, kept: Tensor, count: Tensor) -> Tensor:
    """Return the row that each token belongs to: ``[B,N]`` int64.

    It is the token's own row; else the most ``similar`` row among those it was ``added [B,R,N]`` to; else the
    last row.
    """
    rows, size = added.shape[1:]
    index = torch.arange(size, device=added.device)
    close = torch.where(added, similar, -similarity.FAR)
    close = torch.where(kept[:, :, None] == index, similarity.FAR, close)
    best = close.amax(1, keepdim=True)
    row = torch.arange(rows, device=added.device)[:, None]
    first = torch.where(close == best, row, rows).amin(1)
    return torch.where(best[:, 0] > -similarity.FAR, first, count[:, None] - 1)

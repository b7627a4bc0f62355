"""topv: behind an early layer, the visual tokens that contribute most to what the layer makes of the picture.

TopV (Yang et al., "TopV: Compatible Token Pruning with Inference Time Optimization for Fast and Low-Memory Multimodal
Vision Language Model", CVPR 2025, arXiv 2503.18278). There is no public code; what is said here of the paper comes from
its abstract, from summaries and from an independent implementation.

In: the prompt at the input of layer ``layer`` - 1. Out: before layer ``layer``, exactly ``keep`` visual tokens of each
picture, in their order, and all text. No attention matrix is needed, so the layer's own attention may be fused.

1. Sources s are the picture's tokens that enter the layer, targets t the same tokens behind its attention and its second
   norm (the layer's output still holds the sources and is too like them).
2. Cost of moving source i to target j, each part scaled to 0..1 over the picture:
   C = alpha |s_i - t_j|^2 + beta (1 - exp(-distance(i,j)^2 / (2 sigma^2))) + gamma distance(i, centre), distances on the grid.
3. Optimal transport between uniform masses, three iterations of Sinkhorn with regularization ``epsilon``. A token's
   importance is what it gives in all: the sums of the plan's rows.
4. The tokens of the highest importance stay, and of the others, at even distances, the share ``recovered`` of ``keep``.

From the paper: layer 2 as in FastV, three iterations, the parts of the cost. From the independent implementation: alpha 1,
beta 1, gamma 0.01, sigma 10, epsilon 0.1, the squared distance, and that every fourth of the dropped tokens comes back: at
half of the tokens, which the paper's tables are about, that is 72 of 360, whence ``recovered`` 0.2 of ``keep`` here.

Our reading: each iteration scales the rows first and the columns last. The other way round the row sums would be the
masses that were put in, whatever the cost; so it is in the independent implementation, whose importance is thereby the
length of a token. Positions stay those of the whole prompt; a mixture of a stage before stands at the centre. Importance
within 2^-16 of its mean is equal; of equals the first.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from foveate.export.inside import Cut, Inside, Rows, best_of_picture, share_of
from foveate.export.methods import base
from foveate.export.parts import DecoderSpec

__all__ = ["Method"]

_FINE = 2.0**16
_FLAT = 1e-4  # a cost that varies by less than this share of itself is rounding, and constant
_NONE = 1e-30


@dataclass(frozen=True)
class Method(Inside):
    """Optimal transport through one layer. The options are explained in the module's docstring."""

    position_mode: Literal["compact", "keep"] = "keep"
    layer: int = base.option(2, 1)
    alpha: float = base.option(1.0, 0, 10)
    beta: float = base.option(1.0, 0, 10)
    gamma: float = base.option(0.01, 0, 10)
    sigma: float = base.option(10.0, 0.1, 1000)
    epsilon: float = base.option(0.1, 0.01, 10)
    iterations: int = base.option(3, 1, 32)
    recovered: float = base.option(0.2, 0, 1)

    def cuts(self, spec: DecoderSpec) -> tuple[Cut, ...]:
        return (self.at(spec, self.layer, self.layer - 1),)

    def reads(self, stage: int) -> tuple[str, ...]:
        return "position_ids", "patch", "rows", "columns"

    def stays(self, stage: int, rows: Rows) -> Tensor:
        size = share_of(rows)
        among = rows.same & rows.visual[:, None]
        importance = self._given(self._cost(rows, among), among, size.float())
        back = rows.keep * round(self.recovered * 10**6) // 10**6
        top = best_of_picture((importance * _FINE).round(), rows, rows.keep - back)
        return top | _evenly(rows.visual & ~top, among, back)

    def _cost(self, rows: Rows, among: Tensor) -> Tensor:
        """``[1,T,T]``, sources down, targets across; ``among`` tells the pairs of one picture."""
        source, target = rows.scored.float(), rows.attended().float()
        lengths = (source * source).sum(-1)[:, :, None] + (target * target).sum(-1)[:, None]
        feature = lengths - 2 * torch.matmul(source, target.transpose(1, 2))
        middle = (rows.rows - 1).float() / 2, (rows.columns - 1).float() / 2
        here = rows.patch >= 0
        y = torch.where(here, (rows.patch // rows.columns).float(), middle[0])
        x = torch.where(here, (rows.patch % rows.columns).float(), middle[1])
        apart = (y[:, :, None] - y[:, None]) ** 2 + (x[:, :, None] - x[:, None]) ** 2
        relative = 1 - (apart * (-0.5 / self.sigma**2)).exp()
        central = ((y - middle[0]) ** 2 + (x - middle[1]) ** 2).sqrt()[:, :, None].expand_as(apart)
        parts = (self.alpha, feature), (self.beta, relative), (self.gamma, central)
        return sum(weight * _scaled(part, rows.same, among) for weight, part in parts)

    def _given(self, cost: Tensor, among: Tensor, size: Tensor) -> Tensor:
        """What each source gives, ``[1,T]``, 1 on average over a picture of ``size [1,T]`` tokens."""
        kernel = torch.where(among, (cost * (-1 / self.epsilon)).exp(), 0.0)
        across = torch.ones_like(size)
        for _ in range(self.iterations):
            down = 1 / size / torch.matmul(kernel, across[:, :, None])[..., 0].clamp(min=_NONE)
            across = 1 / size / torch.matmul(down[:, None], kernel)[:, 0].clamp(min=_NONE)
        return down * torch.matmul(kernel, across[:, :, None])[..., 0] * size


def _scaled(part: Tensor, same: Tensor, among: Tensor) -> Tensor:
    """To 0..1 over the pairs of each picture; 0 where it is constant."""
    low = -_most(-part, same, among)
    high = _most(part, same, among)
    spread = high - low
    flat = spread <= _FLAT * torch.maximum(high.abs(), low.abs())
    return torch.where(flat, 0.0, (part - low) / torch.where(flat, 1.0, spread))


def _most(part: Tensor, same: Tensor, among: Tensor) -> Tensor:
    """The highest of ``part [1,T,T]`` over the pairs of each row's picture: ``[1,T,1]``."""
    row = torch.where(among, part, -1e30).amax(-1)
    return torch.where(same, row[:, None], -1e30).amax(-1, keepdim=True)


def _evenly(rest: Tensor, among: Tensor, number: Tensor) -> Tensor:
    """``number [1,T]`` at even distances of each picture's ``rest [1,T]``, the first of them first: ``[1,T]`` bool."""
    index = torch.arange(rest.shape[1], device=rest.device)
    others = among & rest[:, None]
    size = others.to(torch.int64).sum(-1).clamp(min=1)
    before = (others & (index < index[:, None])).to(torch.int64).sum(-1)
    reached = (before * number + size - 1) // size
    return rest & ((before * number + number + size - 1) // size > reached)

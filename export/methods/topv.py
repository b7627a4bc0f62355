"""topv: tokens that contribute most to an early layer (optimal transport), and an even sample of the rest.

TopV (Yang et al., "TopV: Compatible Token Pruning with Inference Time Optimization for Fast and Low-Memory
Multimodal Vision Language Model", CVPR 2025, arXiv 2503.18278). There is no public code. The facts about the
paper given here come from its abstract, from summaries and from an independent implementation.

Input: the prompt at the input of layer ``layer`` - 1. Output: before layer ``layer``, exactly ``keep`` visual
tokens of each image, in their order, and all text. No attention matrix is needed, so the layer's own
attention may be fused.

1. Sources s are the image's tokens that enter the layer. Targets t are the same tokens after the layer's
   attention and second norm. (The layer's output would be too similar to the sources, since it still contains
   them.)
2. The cost of moving source i to target j, with each part scaled to 0..1 over the image and distances on the
   grid, is C = alpha |s_i - t_j|^2 + beta (1 - exp(-distance(i,j)^2 / (2 sigma^2))) + gamma distance(i,
   centre).
3. Optimal transport between uniform masses is approximated by three iterations of Sinkhorn with
   regularization ``epsilon``. The importance of a token is the mass that it gives in all: the sum of its row
   in the transport plan.
4. The tokens with the highest importance stay. The share ``recovered`` of ``keep`` is taken from the others
   at even distances.

From the paper: layer 2 as in FastV, three iterations, the parts of the cost. From the independent
implementation: alpha 1, beta 1, gamma 0.01, sigma 10, epsilon 0.1, the squared distance, and that every
fourth of the dropped tokens comes back. At half of the tokens, which the paper's tables are about, these are
72 of 360; hence ``recovered`` is 0.2 of ``keep`` here.

Our reading: each iteration scales the rows first and the columns last. In the other order the row sums would
be the masses that were put in, whatever the cost. The independent implementation uses that order, so its
importance is the length of a token. Position ids stay those of the whole prompt. A mixture made by an earlier
stage counts as at the centre. Importance within 2^-16 of its mean is equal, and the first of equals wins.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from foveate.export.pruning.in_llm import InLLMPruner, PruneLayer
from foveate.export.pruning.method import PositionMode
from foveate.export.pruning.options import option
from foveate.export.pruning.prompt_state import Extra, PromptState
from foveate.export.spec import DecoderSpec

__all__ = ["Method"]

_FINE = 2.0**16
_FLAT = 1e-4  # a cost that varies by less than this share of itself counts as constant
_NONE = 1e-30
_FAR = 1e30


@dataclass(frozen=True)
class Method(InLLMPruner):
    """Optimal transport through one layer. The module's docstring explains the options."""

    our_reading: ClassVar[bool] = True

    position_mode: PositionMode = "keep"
    layer: int = option(2, 1)
    alpha: float = option(1.0, 0, 10)
    beta: float = option(1.0, 0, 10)
    gamma: float = option(0.01, 0, 10)
    sigma: float = option(10.0, 0.1, 1000)
    epsilon: float = option(0.1, 0.01, 10)
    iterations: int = option(3, 1, 32)
    recovered: float = option(0.2, 0, 1)

    def prune_layers(self, spec: DecoderSpec) -> tuple[PruneLayer, ...]:
        return (self.prune_layer(spec, self.layer, self.layer - 1),)

    def extra_inputs(self, stage: int) -> tuple[Extra, ...]:
        return "position_ids", "patch", "rows", "columns"

    def select(self, stage: int, state: PromptState) -> Tensor:
        size = state.rows_of_image()
        among = state.same & state.visual[:, None]
        importance = self._given(self._kernel(state, among), size.float())
        back = state.keep * round(self.recovered * 10**6) // 10**6
        top = state.best_of_image((importance * _FINE).round(), state.keep - back)
        return top | _evenly(state.visual & ~top, among, back)

    def _kernel(self, state: PromptState, among: Tensor) -> Tensor:
        """Return exp(-C / epsilon) ``[1,T,T]``, sources in rows and targets in columns; 0 outside ``among``.

        ``among [1,T,T]`` bool are the pairs of visual tokens of one image. Terms that are the same for all
        targets are added late, so that most operations stay on ``[1,T,1]``.
        """
        source, target = state.scored.float(), state.attended().float()
        length = (source * source).sum(-1, keepdim=True)
        feature = (target * target).sum(-1)[:, None] + torch.matmul(-2 * source, target.transpose(1, 2))
        low = _least(torch.where(among, feature, _FAR).amin(-1, keepdim=True) + length, state.same)
        high = _most(torch.where(among, feature, -_FAR).amax(-1, keepdim=True) + length, state.same)
        y, x = self._place(state)
        down, across = y[:, :, None] - y[:, None], x[:, :, None] - x[:, None]
        apart = down * down + across * across
        farthest = _most(torch.where(among, apart, 0.0).amax(-1, keepdim=True), state.same)
        bend = -0.5 / self.sigma**2
        central = (y * y + x * x).sqrt()[:, :, None]
        central_low, central_high = _least(central, state.same), _most(central, state.same)
        fixed = self.gamma * (central - central_low) * _share(central_low, central_high)
        cost = (feature + (length - low)) * (self.alpha * _share(low, high))
        relative = self.beta * _share(torch.zeros_like(low), 1 - (farthest * bend).exp())
        cost = cost + (1 - (apart * bend).exp()) * relative + fixed
        return torch.where(among, (cost * (-1 / self.epsilon)).exp(), 0.0)

    def _place(self, state: PromptState) -> tuple[Tensor, Tensor]:
        """Return each row's distance from the grid's centre, down and across: ``[1,T]`` each.

        It is 0 for rows without a place.
        """
        here = state.patch >= 0
        y = (state.patch // state.columns).float() - (state.rows - 1).float() / 2
        x = (state.patch % state.columns).float() - (state.columns - 1).float() / 2
        return torch.where(here, y, 0.0), torch.where(here, x, 0.0)

    def _given(self, kernel: Tensor, size: Tensor) -> Tensor:
        """Return the mass that each source gives, ``[1,T]``: 1 on average over an image.

        ``size [1,T]`` is the number of its tokens.
        """
        across = torch.ones_like(size)
        for _ in range(self.iterations):
            down = 1 / size / torch.matmul(kernel, across[:, :, None])[..., 0].clamp(min=_NONE)
            across = 1 / size / torch.matmul(down[:, None], kernel)[:, 0].clamp(min=_NONE)
        return down * torch.matmul(kernel, across[:, :, None])[..., 0] * size


def _share(low: Tensor, high: Tensor) -> Tensor:
    """Return 1 / (high - low), the factor that scales a part of the cost to 0..1; 0 for a constant part."""
    spread = high - low
    flat = spread <= _FLAT * torch.maximum(high.abs(), low.abs())
    return torch.where(flat, 0.0, 1 / torch.where(flat, 1.0, spread))


def _most(row: Tensor, same: Tensor) -> Tensor:
    """Return the highest value of ``row [1,T,1]`` in each row's image: ``[1,T,1]``."""
    return torch.where(same, row.transpose(1, 2), -_FAR).amax(-1, keepdim=True)


def _least(row: Tensor, same: Tensor) -> Tensor:
    return -_most(-row, same)


def _evenly(rest: Tensor, among: Tensor, number: Tensor) -> Tensor:
    """Mark ``number [1,T]`` tokens of each image's ``rest [1,T]`` at even distances: ``[1,T]`` bool.

    The first token of the rest is marked.
    """
    index = torch.arange(rest.shape[1], device=rest.device)
    others = (among & rest[:, None]).float()
    size = others.sum(-1).to(torch.int64).clamp(min=1)
    before = torch.where(index < index[:, None], others, 0.0).sum(-1).to(torch.int64)
    reached = (before * number + size - 1) // size
    return rest & ((before * number + number + size - 1) // size > reached)

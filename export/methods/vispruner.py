"""vispruner: the tokens the class token attends to, and of the others those that are least like one another.

VisPruner (Zhang et al., "Beyond Text-Visual Attention: Exploiting Visual Cues for Effective Token Pruning in VLMs",
ICCV 2025, arXiv 2412.01818), after the published code. The question is not read.

In: the class token's attention ``[B,N]`` (families without one: the attention a patch receives) and the features
``[B,N,Dv]`` that enter the projector. The publication selects features; the projector maps each token alone, so
selecting the projected tokens ``[B,N,D]`` is the same. Out: exactly ``keep`` tokens, in raster order.

1. *Important*: the int(keep ratio) tokens of highest attention.
2. *Diverse*: all others stand in a list, highest attention first, and leave it in rounds until keep - important are
   left. In a round every token at an even place is compared with all tokens at odd places (largest cosine of the
   features), and the 8 most similar ones leave; fewer where fewer are too many. Then the even ones left, most similar
   first, are followed by the odd ones: the order decides who is even in the next round.

The number of rounds follows from ``keep`` at run time: (N - keep) / 8 for a ratio of 0.5, 48 to 64 at the usual
budgets. ratio = 0.5 is published for all budgets. Positions are renumbered. Equal values go to the earlier token.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from foveate.export import picking
from foveate.export.methods import base
from foveate.export.parts import ModelSpec

__all__ = ["Method"]


@dataclass(frozen=True)
class Method(base.Method):
    """Important and diverse tokens. ``layer``: vision layer of the attention, -1 gives the features.

    ``step``: tokens that leave the list per round.
    """

    ratio: float = base.option(0.5, 0, 1)
    step: int = base.option(8, 1, 4096)
    layer: int = -1

    def taps(self, spec: ModelSpec) -> tuple[str, ...]:
        return base.tap(spec, picking.saliency(spec), self.layer), "features"

    def reduce(
        self, tokens: Tensor, taps: dict[str, Tensor], keep: base.Keep, grid: tuple[int, int]
    ) -> tuple[Tensor, Tensor, Tensor]:
        size = tokens.shape[1]
        budget = torch.full((1,), keep, dtype=torch.int64, device=tokens.device)
        important = budget * round(self.ratio * 10**6) // 10**6
        place = base.rank(next(iter(taps.values())).float())
        chosen = place < important
        key = torch.where(chosen, place + size, place - important)
        queue = (-key).topk(size, dim=1).indices  # of distinct keys, so no engine has to break ties
        similar = picking.cosines(taps["features"])
        diverse = self.thin_out(similar, queue, size - important, budget - important)
        kept = base.marked(chosen | diverse, keep)
        return base.gather(tokens, kept), kept, base.count(kept)

    def thin_out(self, similar: Tensor, queue: Tensor, length: Tensor, wanted: Tensor) -> Tensor:
        """The ``wanted [1]`` tokens that stay of the first ``length [1]`` of ``queue [B,N]``: a mask ``[B,N]``."""
        size = queue.shape[1]
        queue = F.pad(queue, (0, size % 2))
        half = torch.arange(queue.shape[1] // 2, device=queue.device)
        behind = 4 * size  # places of what has left, distinct

        def more(length: Tensor, queue: Tensor) -> Tensor:
            return ((wanted > 0) & (length > wanted)).any()

        def turn(length: Tensor, queue: Tensor) -> tuple[Tensor, ...]:
            even, odd = queue[:, 0::2], queue[:, 1::2]
            alike = torch.where(2 * half + 1 < length, _pairs(similar, even, odd), -2.0).amax(-1)
            evens = (length + 1) // 2
            leave = torch.minimum(torch.minimum(length - wanted, evens), torch.full_like(evens, self.step))
            place = base.rank(torch.where(half < evens, alike, -4.0)).to(torch.int64)
            stays = (place >= leave) & (half < evens)
            place = torch.where(stays, place - leave, behind + half)
            places = torch.cat([place, (evens - leave + half).expand_as(place)], 1)
            order = (-places).to(torch.float32).topk(places.shape[1], dim=1).indices
            return length - leave, torch.cat([even, odd], 1).gather(1, order)

        queue = picking.loop(more, turn, (length, queue))[1]
        stays = torch.arange(queue.shape[1], device=queue.device) < wanted
        index = torch.arange(size, device=queue.device)
        return ((queue[:, :, None] == index) & stays[:, None]).any(1)


def _pairs(similar: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """``similar [B,N,N]`` at ``rows [B,R]`` and ``columns [B,C]``: ``[B,R,C]``."""
    found = base.gather(similar, rows)
    return found.gather(2, columns[:, None, :].expand(-1, rows.shape[1], -1))

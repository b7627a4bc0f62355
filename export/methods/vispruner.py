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
from torch import Tensor

from foveate.export import picking
from foveate.export.methods import base
from foveate.export.parts import ModelSpec

__all__ = ["Method"]

_GONE = 2.0**20
"""Above every place in the list: that of tokens that are not in it."""


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
        budget = torch.full((1,), keep, dtype=torch.int64, device=tokens.device)
        important = budget * round(self.ratio * 10**6) // 10**6
        place = base.rank(next(iter(taps.values())).float())
        chosen = place < important
        listed = torch.where(chosen, _GONE, place - important)
        length, wanted = (each.float() for each in ((~chosen).sum(1, keepdim=True), budget - important))
        similar = picking.cosines(taps["features"])
        kept = base.marked(chosen | self.thin_out(similar, listed, length, wanted), keep)
        return base.gather(tokens, kept), kept, base.count(kept)

    def thin_out(self, similar: Tensor, place: Tensor, length: Tensor, wanted: Tensor) -> Tensor:
        """The ``wanted [1]`` tokens that stay of ``length [B,1]``, whose ``place [B,N]`` in the list is known: a mask ``[B,N]``.

        The list is never written down: TensorRT refuses loops that carry tensors of a run-time size through slices of them.
        """

        def more(length: Tensor, place: Tensor) -> Tensor:
            return ((wanted > 0) & (length > wanted)).any()

        def turn(length: Tensor, place: Tensor) -> tuple[Tensor, ...]:
            pair = (place / 2).floor()
            there, even = place < length, pair * 2 == place
            alike = torch.where((there & ~even)[:, None, :], similar, -2.0).amax(-1)
            alike = torch.where(there & even, alike, -4.0)
            mine, other = alike[:, :, None], alike[:, None, :]
            ahead = (other > mine) | ((other == mine) & (place[:, None, :] < place[:, :, None]))
            rank = ahead.float().sum(-1)
            evens = ((length + 1) / 2).floor()
            leave = torch.minimum(length - wanted, evens).clamp(max=self.step)
            left = torch.where(rank < leave, _GONE, rank - leave)
            moved = torch.where(even, left, evens - leave + pair)
            return length - leave, torch.where(there, moved, _GONE)

        return picking.loop(more, turn, (length, place))[1] < wanted

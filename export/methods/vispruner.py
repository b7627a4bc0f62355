"""vispruner: tokens with the most class-token attention, and of the rest those least similar to one another.

VisPruner (Zhang et al., "Beyond Text-Visual Attention: Exploiting Visual Cues for Effective Token Pruning in
VLMs", ICCV 2025, arXiv 2412.01818), after the published code. The question is not read.

Input: the class token's attention ``[B,N]`` (families without one: the attention a patch receives) and the
features ``[B,N,Dv]`` that enter the projector. The publication selects features. The projector maps each
token by itself, so selecting the projected tokens ``[B,N,D]`` is the same. Output: exactly ``keep`` tokens,
in raster order.

1. *Important*: the int(keep ratio) tokens of highest attention stay.
2. *Diverse*: all others form a list, highest attention first, which is thinned out in rounds until keep -
   important are left. In a round every token at an even place is compared with all tokens at odd places
   (largest cosine of the features), and the 8 most similar ones are dropped (the last round drops only as
   many as needed). The new list has the remaining even tokens, most similar first, then the odd ones. This
   order decides which are even in the next round.

The number of rounds follows from ``keep`` at run time: (N - keep) / 8 for a ratio of 0.5, 48 to 64 at the
usual budgets. ratio = 0.5 is published for all budgets. Positions are renumbered. Of equal values the earlier
token wins.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from foveate.export.networks.onnx_ops import loop
from foveate.export.pruning import selection, similarity
from foveate.export.pruning.options import option
from foveate.export.pruning.pre_llm import PreLLMPruner
from foveate.export.pruning.selection import Keep
from foveate.export.pruning.taps import saliency, tap
from foveate.export.spec import ModelSpec

__all__ = ["Method"]


@dataclass(frozen=True)
class Method(PreLLMPruner):
    """Important and diverse tokens.

    ``ratio``: share of important tokens. ``step``: number of tokens dropped per round. ``layer``: vision
    layer of the attention; -1 is the layer that gives the features.
    """

    ratio: float = option(0.5, 0, 1)
    step: int = option(8, 1, 4096)
    layer: int = -1

    def taps(self, spec: ModelSpec) -> tuple[str, ...]:
        return tap(spec, saliency(spec), self.layer), "features"

    def reduce(
        self, tokens: Tensor, taps: dict[str, Tensor], keep: Keep, grid: tuple[Keep, Keep]
    ) -> tuple[Tensor, Tensor, Tensor]:
        budget = torch.full((1,), keep, dtype=torch.int64, device=tokens.device)
        important = budget * round(self.ratio * 10**6) // 10**6
        place = selection.rank(next(iter(taps.values())).float()).to(torch.int64)
        chosen = place < important
        size = tokens.shape[1]
        index = torch.arange(size, device=tokens.device)
        order = _sent(index.expand_as(place), torch.where(chosen, size + place, place) - important)
        similar = similarity.cosines(taps["features"])
        order = self.thin_out(similar, order, size - important, budget - important)
        listed = _sent((index < budget - important).to(torch.int64).expand_as(order), order) > 0
        kept = selection.marked(chosen | listed, keep)
        return selection.gather(tokens, kept), kept, selection.count(kept)

    def thin_out(self, similar: Tensor, order: Tensor, length: Tensor, wanted: Tensor) -> Tensor:
        """Thin out the list ``order [B,N]`` of ``length [1]`` entries to ``wanted [1]`` entries."""
        size = order.shape[1]
        pair = torch.arange((size + 1) // 2, device=order.device)
        even, odd = 2 * pair, 2 * pair[: size // 2] + 1
        rows = similar.reshape(-1, size)
        first = torch.arange(order.shape[0], device=order.device)[:, None] * size

        def more(length: Tensor, order: Tensor) -> Tensor:
            return ((wanted > 0) & (length > wanted)).any()

        def turn(length: Tensor, order: Tensor) -> tuple[Tensor, ...]:
            evens, odds = order[:, even], order[:, odd]
            compared = order[:, torch.where(odd < length, odd, 1)]
            alike = F.embedding(compared + first, rows).amax(1).gather(1, evens)
            place = selection.rank(torch.where(even < length, alike, -4.0)).to(torch.int64)
            count = (length + 1) // 2
            leave = torch.minimum(length - wanted, count).clamp(max=self.step)
            left = torch.where(place < leave, length + place, place) - leave
            to_even = torch.where(even < length, left, even)
            to_odd = torch.where(odd < length, count - leave + odd // 2, odd).expand_as(odds)
            return length - leave, _sent(torch.cat((evens, odds), 1), torch.cat((to_even, to_odd), 1))

        return loop(more, turn, (length, order))[1]


def _sent(values: Tensor, places: Tensor) -> Tensor:
    """Put ``values [B,N]`` int64 to their ``places [B,N]``, a permutation."""
    return torch.zeros_like(places).scatter(1, places, values)

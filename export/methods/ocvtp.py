"""ocvtp: tokens selected by the slots of a trained slot-attention network, then by received attention.

OC-VTP (Li, Zhao, Deng, Wang, Pajarinen, "Object-Centric Vision Token Pruning for Vision Language Models", arXiv
2511.20439, CVPR 2026 Findings), after the published code. The network (``export/methods/_ocvtp_network.py``) is trained once per vision
tower, to rebuild all tokens from as many slots as tokens may stay; the language model is not touched and the question is
not read. Where its weights come from is told in ``docs/ocvtp.md``.

In: the output of a middle layer of the tower ``[B,N,D]``, for the network; the attention that each patch receives in the
last layer (mean over heads and all queries), or the class token's, ``[B,N]``, for the fill. The publication selects
features before the projector; the projector maps each token alone, so selecting the projected tokens ``[B,N,D]`` is the
same. Out: exactly ``keep`` tokens, in raster order.

1. S = (keep + 1) // ``top_k`` slots start as mean + noise exp(logstd) and take three turns of slot attention.
2. *Picks*: the ``top_k`` tokens that each slot attends to most. Slots often agree, so picks are fewer than slots.
3. *Fill*: of all others those with the highest attention in the last layer: ``fill`` "received" or "cls".

The class token counts in the published budget, hence keep + 1; it is always picked there, and dropped before the projector.

``layer`` is the layer the network reads, counted from 0; by default 8, as published for the 24 layers of CLIP ViT-L (of
which 23 run), and in proportion for towers of another depth. Positions are renumbered, as published.

Where this is not the published code: the noise there is drawn anew for every picture; here it is a table of ``seed``, of
which slot s reads row s, so that a picture always keeps the same tokens. When all slots pick different tokens there is one
pick too many, and the published code drops one in the order of a Python set; here the picks with the lowest attention in
the last layer go. Attention within 4e-6 of a slot's highest counts as equal, and of equal tokens the first is picked
(published: whatever the sort of the machine gives). There is at least one slot, however large ``top_k``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from foveate.export.methods._ocvtp_network import SlotPruner
from foveate.export.pruning import method
from foveate.export.spec import ModelSpec

__all__ = ["Method", "Network", "noise_table", "picks", "vision_layer"]

_EQUAL = 1 - 2.0**-18
"""Engines' sums end some units in the last place apart: copies of a token are to tie all the same."""


@dataclass(frozen=True)
class Method(method.Scorer):
    """Slot attention. The options are explained in the module's docstring."""

    layer: int | None = None
    top_k: int = method.option(1, 1, 16)
    fill: Literal["received", "cls"] = "received"
    seed: int = method.option(0, 0, 2**31 - 1)

    def taps(self, spec: ModelSpec) -> tuple[str, ...]:
        fill = {"received": "received_attention", "cls": "cls_attention"}[self.fill]
        return method.tap(spec, "hidden", vision_layer(spec, self.layer)), method.tap(spec, fill)

    def module(self, spec: ModelSpec) -> Network:
        return Network(spec.vision.hidden_size, spec.vision.num_tokens, self.taps(spec)[0], self)

    def score(
        self, tokens: Tensor, taps: dict[str, Tensor], keep: method.Keep, grid: tuple[int, int]
    ) -> Tensor:
        _, fill, attention = taps.values()
        first = torch.where(picks(attention, self.top_k), 1.0 * tokens.shape[1], 0.0)
        return first - method.rank(fill.float())


class Network(SlotPruner):
    """The trained network with its table of noise: the hidden states in, the slots' attention out."""

    def __init__(self, width: int, tokens: int, tap: str, options: Method) -> None:
        super().__init__(width)
        self.tap, self.options = tap, options
        self.noise = torch.nn.Parameter(torch.empty(tokens + 1, self.slot_width), requires_grad=False)

    def tables(self) -> dict[str, Tensor]:
        """Parameters that no file holds."""
        return {"noise": noise_table(*self.noise.shape, self.options.seed)}

    def forward(self, taps: dict[str, Tensor], keep: method.Keep) -> dict[str, Tensor]:
        """``slot_attention [B,S,N]`` float32."""
        count = torch.sym_max((keep + 1) // self.options.top_k, 1)
        rows = F.embedding(torch.arange(count, device=self.noise.device), self.noise)
        return {"slot_attention": self.attend(taps[self.tap].float(), rows[None].float())[1]}


def noise_table(rows: int, width: int, seed: int) -> Tensor:
    """Standard normal numbers ``[rows, width]``; slot s starts from row s."""
    generator = torch.Generator("cpu").manual_seed(seed)
    return torch.randn(rows, width, generator=generator, device="cpu")


def vision_layer(spec: ModelSpec, layer: int | None = None) -> int:
    """The layer that the network reads: ``layer``, or the published one in proportion."""
    return round(8 / 23 * spec.vision.depth) if layer is None else layer


def picks(attention: Tensor, top_k: int = 1) -> Tensor:
    """The ``top_k`` tokens that each slot attends to most, the first of equals: ``[B,S,N]`` -> ``[B,N]`` bool."""
    size = attention.shape[2]
    index = torch.arange(size, device=attention.device)
    left = attention
    for _ in range(top_k):
        best = left.amax(-1, keepdim=True)
        first = torch.where(left >= best * _EQUAL, index, size).amin(-1, keepdim=True)  # [B,S,1]
        left = torch.where(index == first, -1.0, left)
    return left.amin(1) < 0

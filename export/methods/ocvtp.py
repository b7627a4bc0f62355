"""ocvtp: tokens selected by the slots of a trained slot-attention network, then by received attention.

OC-VTP (Li, Zhao, Deng, Wang, Pajarinen, "Object-Centric Vision Token Pruning for Vision Language Models",
arXiv 2511.20439, CVPR 2026 Findings), after the published code. The network
(``export/methods/_ocvtp_network.py``) is trained once per vision encoder, to rebuild all tokens from as many
slots as tokens may stay. The language model is not changed and the question is not read. ``docs/ocvtp.md``
tells where the weights come from.

Input: the output of a middle layer of the vision encoder ``[B,N,D]``, for the network; and for the fill the
attention that each patch receives in the last layer (mean over heads and all queries), or the class token's,
``[B,N]``. The publication selects features before the projector. The projector maps each token by itself, so
selecting the projected tokens ``[B,N,D]`` is the same. Output: exactly ``keep`` tokens, in raster order.

1. S = (keep + 1) // ``top_k`` slots start as mean + noise exp(logstd) and take three iterations of slot
   attention.
2. *Picks*: the ``top_k`` tokens that each slot attends to most. Slots often agree, so there are fewer picks
   than slots.
3. *Fill*: the tokens among all others with the highest attention in the last layer, ``fill`` "received" or
   "cls".

The number of slots is keep + 1 because the published budget counts the class token, which the published code
always picks and drops before the projector.

``layer`` is the layer that the network reads, counted from 0. The default is 8, as published for the 24
layers of CLIP ViT-L (of which 23 run), and in proportion for encoders of another depth. Positions are
renumbered, as published.

Differences from the published code:

* The published code draws new noise for every image. Here the noise is a table made from ``seed``, and slot s
  reads row s, so an image always keeps the same tokens.
* When all slots pick different tokens there is one pick too many. The published code drops one in the order
  of a Python set; here the pick with the lowest attention in the last layer is dropped.
* Attention within 4e-6 of a slot's highest counts as equal, and the first of equal tokens is picked. The
  published code leaves this to the machine's sort.
* There is at least one slot, however large ``top_k`` is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from foveate.export.methods._ocvtp_network import SlotPruner
from foveate.export.pruning import selection
from foveate.export.pruning.options import option
from foveate.export.pruning.pre_llm import ScoringPruner
from foveate.export.pruning.selection import Keep
from foveate.export.pruning.taps import tap
from foveate.export.spec import ModelSpec

__all__ = ["Method", "Network", "noise_table", "picks", "vision_layer"]

_EQUAL = 1 - 2.0**-18
"""Factor within which attention counts as equal: copies of a token must tie although engines' sums differ by
some ulps."""


@dataclass(frozen=True)
class Method(ScoringPruner):
    """Slot attention. The module's docstring explains the options."""

    layer: int | None = None
    top_k: int = option(1, 1, 16)
    fill: Literal["received", "cls"] = "received"
    seed: int = option(0, 0, 2**31 - 1)

    def taps(self, spec: ModelSpec) -> tuple[str, ...]:
        fill = {"received": "received_attention", "cls": "cls_attention"}[self.fill]
        return tap(spec, "hidden", vision_layer(spec, self.layer)), tap(spec, fill)

    def module(self, spec: ModelSpec) -> Network:
        return Network(spec.vision.hidden_size, spec.vision.num_tokens, self.taps(spec)[0], self)

    def score(self, tokens: Tensor, taps: dict[str, Tensor], keep: Keep, grid: tuple[Keep, Keep]) -> Tensor:
        _, fill, attention = taps.values()
        first = torch.where(picks(attention, self.top_k), 1.0 * tokens.shape[1], 0.0)
        return first - selection.rank(fill.float())


class Network(SlotPruner):
    """The trained network with its table of noise. It maps hidden states to the slots' attention."""

    def __init__(self, width: int, tokens: int, tap: str, options: Method) -> None:
        super().__init__(width)
        self.tap, self.options = tap, options
        self.noise = torch.nn.Parameter(torch.empty(tokens + 1, self.slot_width), requires_grad=False)

    def tables(self) -> dict[str, Tensor]:
        """Return the parameters that are computed and not read from a file."""
        rows, width = self.noise.shape
        return {"noise": noise_table(rows, width, self.options.seed)}

    def forward(self, taps: dict[str, Tensor], keep: Keep) -> dict[str, Tensor]:
        """Return ``slot_attention [B,S,N]`` float32."""
        count = torch.sym_max((keep + 1) // self.options.top_k, 1)
        rows = F.embedding(torch.arange(count, device=self.noise.device), self.noise)
        return {"slot_attention": self.attend(taps[self.tap].float(), rows[None].float())[1]}


def noise_table(rows: int, width: int, seed: int) -> Tensor:
    """Return standard normal numbers ``[rows, width]``; slot s starts from row s."""
    generator = torch.Generator("cpu").manual_seed(seed)
    return torch.randn(rows, width, generator=generator, device="cpu")


def vision_layer(spec: ModelSpec, layer: int | None = None) -> int:
    """Return the layer that the network reads: ``layer``, or the published one in proportion."""
    return round(8 / 23 * spec.vision.depth) if layer is None else layer


def picks(attention: Tensor, top_k: int = 1) -> Tensor:
    """Mark the tokens that each slot attends to most: ``[B,S,N]`` -> ``[B,N]`` bool.

    There are ``top_k`` per slot, the first of equals.
    """
    size = attention.shape[2]
    index = torch.arange(size, device=attention.device)
    left = attention
    for _ in range(top_k):
        best = left.amax(-1, keepdim=True)
        first = torch.where(left >= best * _EQUAL, index, size).amin(-1, keepdim=True)  # [B,S,1]
        left = torch.where(index == first, -1.0, left)
    return left.amin(1) < 0

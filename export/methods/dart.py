"""dart: the tokens least similar to a few pivot tokens, so that near-duplicates are dropped.

DART (Wen et al., "Stop Looking for Important Tokens in Multimodal Language Models: Duplication Matters More", EMNLP 2025,
arXiv 2502.11494), after the published code.

In: the prompt at the input of layers ``layer`` - 1 and ``layer``. Out: before layer ``layer``, exactly ``keep`` visual
tokens of each picture, in their order, and all text.

1. *Pivots*: of each picture the ``image_pivots`` tokens, and of the text behind the pictures the ``text_pivots`` tokens,
   whose keys in layer ``layer`` - 1 have the largest L1 norm (rotary embedding included, summed over heads).
2. Pivot after pivot, each claims those of the picture's remaining tokens that are least similar to it: cosine of the
   states that enter layer ``layer``, behind the decoder's *final* norm, as in the published code.
3. The picture's pivots and all that were claimed stay. Each pivot claims the same number.

The published defaults are ``layer`` 2 and 4 pivots of either kind; positions stay those of the whole prompt. What is
published as 128 tokens keeps 4 + 8 (128 / 8) = 132: ask for 132 (64: 68, 192: 196) to have the same.

Our reading: ``keep`` is kept to exactly, so where it does not divide the first pivots claim one token more, and a
``keep`` below ``image_pivots`` takes the first of these alone; pivots claim in the order of the prompt (there: in that of
a Python set); where there is less text than text pivots, all of it is. With several pictures, each has its own pivots
and its own share, and the text behind the last one serves them all. Cosines within 2^-22 are equal; of equals the first.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from foveate.export.pruning import method, selection
from foveate.export.pruning.in_llm import Cut, Inside, Rows, best_of_picture
from foveate.export.spec import DecoderSpec

__all__ = ["Method"]


@dataclass(frozen=True)
class Method(Inside):
    """Tokens unlike the pivots. The options are explained in the module's docstring."""

    reads_question: ClassVar[bool] = True  # its text pivots

    position_mode: Literal["compact", "keep"] = "keep"
    layer: int = method.option(2, 1)
    image_pivots: int = method.option(4, 1, 64)
    text_pivots: int = method.option(4, 0, 64)

    def cuts(self, spec: DecoderSpec) -> tuple[Cut, ...]:
        return (self.at(spec, self.layer, self.layer - 1),)

    def reads(self, stage: int) -> tuple[str, ...]:
        return ("position_ids",)

    def stays(self, stage: int, rows: Rows) -> Tensor:
        similar = selection.cosines(rows.norm(rows.hidden))
        seeds, words = self.pivots(rows)
        index = torch.arange(similar.shape[1], device=similar.device)
        claims = (rows.same & seeds[:, None, :]) | (rows.visual[:, :, None] & words[:, None, :])
        turn = (claims & (index < index[:, None])).to(torch.int64).sum(-1)
        turn = torch.where(words, self.image_pivots + _before(words), turn)
        each = self.image_pivots + words.to(torch.int64).sum(1, keepdim=True)
        rest = (rows.keep - self.image_pivots).clamp(min=0)

        def more(number: Tensor, claimed: Tensor) -> Tensor:
            return number < self.image_pivots + self.text_pivots

        def claim(number: Tensor, claimed: Tensor) -> tuple[Tensor, ...]:
            pivot = torch.where(claims & (turn == number)[:, None, :], index, 0).amax(-1)
            near = similar.gather(2, pivot[:, :, None])[..., 0]
            share = torch.where(number < each, rest // each + (number < rest % each), 0)
            free = torch.where(seeds | (claimed > 0), -4.0, -near)
            return number + 1, torch.maximum(claimed, best_of_picture(free, rows, share).float())

        start = torch.zeros((), dtype=torch.int64, device=similar.device)
        nothing = torch.zeros(1, similar.shape[1], device=similar.device)
        return seeds | (selection.loop(more, claim, (start, nothing))[1] > 0)

    def pivots(self, rows: Rows) -> tuple[Tensor, Tensor]:
        """``[1,T]`` bool each: those of the pictures, ``keep`` at most, and those of the text."""
        size = rows.keys(rotated=True).float().abs().sum((1, 3))
        index = torch.arange(size.shape[1], device=size.device)
        text = index > torch.where(rows.visual, index, -1).amax(1, keepdim=True)
        place = selection.place_within(size, torch.where(text, -2, rows.picture)[0])
        return (
            rows.visual & (place < rows.keep.clamp(max=self.image_pivots)),
            text & (place < self.text_pivots),
        )


def _before(mask: Tensor) -> Tensor:
    """How many of ``mask [1,T]`` come before each row: int64."""
    number = mask.to(torch.int64)
    return number.cumsum(1) - number

"""dart: the tokens least similar to a few pivot tokens, so that near-duplicates are dropped.

DART (Wen et al., "Stop Looking for Important Tokens in Multimodal Language Models: Duplication Matters More",
EMNLP 2025, arXiv 2502.11494), after the published code.

Input: the prompt at the input of layers ``layer`` - 1 and ``layer``. Output: before layer ``layer``, exactly
``keep`` visual tokens of each image, in their order, and all text.

1. *Pivots* are tokens whose keys in layer ``layer`` - 1 have the largest L1 norm (rotary embedding included,
   summed over heads): ``image_pivots`` tokens of each image, and ``text_pivots`` tokens of the text behind
   the images.
2. One pivot after the other claims tokens of the image that are still free and least similar to it. The
   similarity is the cosine of the states that enter layer ``layer``, after the decoder's *final* norm, as in
   the published code.
3. The image's pivots and all claimed tokens stay. Each pivot claims the same number.

The published defaults are ``layer`` 2 and 4 pivots of either kind. Position ids stay those of the whole
prompt. The published budget of 128 tokens keeps 4 + 8 (128 / 8) = 132 tokens. Use ``keep`` 132 for the same
(68 for 64, 196 for 192).

Our reading:

* Exactly ``keep`` tokens stay. If the number does not divide evenly, the first pivots claim one token more. A
  ``keep`` below ``image_pivots`` uses only the first pivots.
* Pivots claim in the order of the prompt. The published code uses the order of a Python set.
* If there is less text than ``text_pivots``, all of it are pivots.
* Each image has its own pivots and its own budget. The text behind the last image serves all of them.
* Cosines within 2^-22 are equal, and the first of equals wins.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from foveate.export.networks.onnx_ops import loop
from foveate.export.pruning import selection, similarity
from foveate.export.pruning.in_llm import InLLMPruner, PruneLayer
from foveate.export.pruning.method import PositionMode
from foveate.export.pruning.options import option
from foveate.export.pruning.prompt_state import Extra, PromptState
from foveate.export.spec import DecoderSpec

__all__ = ["Method"]


@dataclass(frozen=True)
class Method(InLLMPruner):
    """Keeps tokens unlike the pivots. The module's docstring explains the options."""

    reads_question: ClassVar[bool] = True  # its text pivots

    position_mode: PositionMode = "keep"
    layer: int = option(2, 1)
    image_pivots: int = option(4, 1, 64)
    text_pivots: int = option(4, 0, 64)

    def prune_layers(self, spec: DecoderSpec) -> tuple[PruneLayer, ...]:
        return (self.prune_layer(spec, self.layer, self.layer - 1),)

    def extra_inputs(self, stage: int) -> tuple[Extra, ...]:
        return ("position_ids",)

    def select(self, stage: int, state: PromptState) -> Tensor:
        similar = similarity.cosines(state.norm(state.hidden))
        seeds, words = self.pivots(state)
        index = torch.arange(similar.shape[1], device=similar.device)
        claims = (state.same & seeds[:, None, :]) | (state.visual[:, :, None] & words[:, None, :])
        turn = (claims & (index < index[:, None])).to(torch.int64).sum(-1)
        turn = torch.where(words, self.image_pivots + _before(words), turn)
        each = self.image_pivots + words.to(torch.int64).sum(1, keepdim=True)
        rest = (state.keep - self.image_pivots).clamp(min=0)

        def more(number: Tensor, claimed: Tensor) -> Tensor:
            return number < self.image_pivots + self.text_pivots

        def claim(number: Tensor, claimed: Tensor) -> tuple[Tensor, ...]:
            pivot = torch.where(claims & (turn == number)[:, None, :], index, 0).amax(-1)
            near = similar.gather(2, pivot[:, :, None])[..., 0]
            share = torch.where(number < each, rest // each + (number < rest % each), 0)
            free = torch.where(seeds | (claimed > 0), -4.0, -near)
            return number + 1, torch.maximum(claimed, state.best_of_image(free, share).float())

        start = torch.zeros((), dtype=torch.int64, device=similar.device)
        nothing = torch.zeros(1, similar.shape[1], device=similar.device)
        return seeds | (loop(more, claim, (start, nothing))[1] > 0)

    def pivots(self, state: PromptState) -> tuple[Tensor, Tensor]:
        """Mark the pivots of the images (at most ``keep`` each), and those of the text: ``[1,T]`` each."""
        size = state.keys(rotated=True).float().abs().sum((1, 3))
        index = torch.arange(size.shape[1], device=size.device)
        text = index > torch.where(state.visual, index, -1).amax(1, keepdim=True)
        place = selection.rank_within(size, torch.where(text, -2, state.image)[0])
        return (
            state.visual & (place < state.keep.clamp(max=self.image_pivots)),
            text & (place < self.text_pivots),
        )


def _before(mask: Tensor) -> Tensor:
    """Count the true entries of ``mask [1,T]`` before each row: ``[1,T]`` int64."""
    number = mask.to(torch.int64)
    return number.cumsum(1) - number

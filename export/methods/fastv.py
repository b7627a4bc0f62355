"""fastv: the tokens that the prompt's last token attends to most in an early layer.

FastV (Chen et al., "An Image is Worth 1/2 Tokens After Layer 2: Plug-and-Play Inference Acceleration for
Large Vision-Language Models", ECCV 2024, arXiv 2403.06764), after the published code.

Input: the prompt at the input of layer ``layer`` - 1. Output: before layer ``layer``, exactly ``keep`` visual
tokens of each image, in their order, and all text.

1. The score is the attention of the prompt's last token in layer ``layer`` - 1, rotary embedding included,
   with a softmax over all keys of the prompt, mean over heads.
2. The ``keep`` visual tokens with the highest scores stay.

The published defaults are ``layer`` 2 and half of the tokens. Published tables at 192, 128 and 64 tokens use
``layer`` 2, too. Position ids stay those of the whole prompt. ``rope`` false leaves the rotary embedding out
of the score. This option is not published; FEATHER (arXiv 2412.13180) found that rotary embedding makes the
score prefer the bottom of the image.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from foveate.export.pruning.in_llm import InLLMPruner, PruneLayer
from foveate.export.pruning.method import PositionMode
from foveate.export.pruning.options import option
from foveate.export.pruning.prompt_state import Extra, PromptState
from foveate.export.spec import DecoderSpec

__all__ = ["Method"]


@dataclass(frozen=True)
class Method(InLLMPruner):
    """Attention of the last token in an early layer. The module's docstring explains the options."""

    reads_question: ClassVar[bool] = True

    position_mode: PositionMode = "keep"
    layer: int = option(2, 1)
    rope: bool = True

    def prune_layers(self, spec: DecoderSpec) -> tuple[PruneLayer, ...]:
        return (self.prune_layer(spec, self.layer, self.layer - 1),)

    def extra_inputs(self, stage: int) -> tuple[Extra, ...]:
        return ("position_ids",) if self.rope else ()

    def select(self, stage: int, state: PromptState) -> Tensor:
        return state.best_of_image(state.last_attention(rotated=self.rope), state.keep)

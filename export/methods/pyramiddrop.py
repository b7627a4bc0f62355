"""pyramiddrop: the tokens that the prompt's last token attends to most, fewer at each of three depths.

PyramidDrop (Xing et al., "PyramidDrop: Accelerating Your Large Vision-Language Models via Pyramid Visual
Redundancy Reduction", CVPR 2025, arXiv 2410.17247), after the published code.

Input: the prompt at the input of each layer in ``layers``. Output: before each of these layers, the selected
visual tokens of each image, in their order, and all text.

1. The score is the attention of the prompt's last token in the layer after the cut, rotary embedding
   included, with a softmax over all keys of the prompt, mean over heads.
2. The visual tokens with the highest scores stay: N (keep / N)^(s/S) of N tokens after the s-th of S cuts.
   ``keep`` is the number after the last cut.

The published schedule keeps 0.5, 0.25 and 0.125 of the tokens before layers 8, 16 and 24 of 32. This is
``keep`` 12.5% (72 of 576: 288, 144, 72). Decoders of another depth are cut in proportion. Positions are
renumbered at every cut, as published. VScan's stage in the language model (arXiv 2505.22654) is this method
with one cut in the middle: ``--method vscan+pyramiddrop --set layers=16``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from foveate.export.pruning.budgets import SMALLEST_SHARE, Points
from foveate.export.pruning.in_llm import InLLMPruner, PruneLayer, in_proportion
from foveate.export.pruning.prompt_state import Extra, PromptState
from foveate.export.spec import DecoderSpec, ModelSpec

__all__ = ["Method"]


@dataclass(frozen=True)
class Method(InLLMPruner):
    """Attention of the last token, at several layers. The module's docstring explains the options."""

    reads_question: ClassVar[bool] = True

    layers: tuple[int, ...] | None = None

    def prune_layers(self, spec: DecoderSpec) -> tuple[PruneLayer, ...]:
        return tuple(self.prune_layer(spec, layer, layer) for layer in self._layers(spec))

    def _layers(self, spec: DecoderSpec) -> tuple[int, ...]:
        return in_proportion((8 / 32, 16 / 32, 24 / 32), spec) if self.layers is None else self.layers

    def budgets(self, spec: ModelSpec) -> dict[str, Points]:
        cuts = len(self._layers(spec.decoder))
        return {
            f"pruner.{stage}": ((SMALLEST_SHARE, SMALLEST_SHARE ** ((stage + 1) / cuts)), (1.0, 1.0))
            for stage in range(cuts)
        }

    def extra_inputs(self, stage: int) -> tuple[Extra, ...]:
        return ("position_ids",)

    def select(self, stage: int, state: PromptState) -> Tensor:
        return state.best_of_image(state.last_attention(rotated=True), state.keep)

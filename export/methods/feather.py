"""feather: tokens with the most last-token attention without RoPE, and an even grid; again in a middle layer.

FEATHER (Endo, Wang, Yeung-Levy, "Feather the Throttle: Revisiting Visual Token Pruning for Vision-Language
Model Acceleration", ICCV 2025, arXiv 2412.13180), after the published code. With rotary embedding an early
layer's attention prefers the end of the visual tokens, which is the bottom of the image. The score therefore
leaves rotary embedding out, a grid keeps every part of the image, and most pruning waits for a middle layer.

Input: the prompt at the input of layers ``layers`` - 1. Output: before each layer in ``layers``, the selected
visual tokens of each image, in their order, and all text.

1. phi_-R = softmax over the image's tokens of q k / sqrt(d), mean over heads. It uses the weights of the
   layer before the cut, without rotary embedding, and q of the prompt's last token.
2. First cut: the ``keep`` tokens of the highest phi_-R stay, and every ``stride``-th token of every
   ``stride``-th row of the grid. Their number depends on the image and is at least ``keep``.
3. Each later cut: floor(n rho^2) of the remaining n tokens stay, by a new phi_-R. The tokens of the grid are
   not protected: the published code does not protect them, although its comment says that it does. The
   publication starts from the share rho and has keep = floor(N rho) of N tokens; here rho = (keep + 1/2) / N,
   the middle of the shares that give this ``keep``.

The published defaults are ``layers`` 8, 16 of 32 (in proportion for decoders of another depth), ``stride`` 3
and ``keep`` 30 % of the tokens. ``keep`` is the number in step 2. The mean over the layers is higher, since
all tokens run through the first quarter. Position ids stay those of the whole prompt. ``rope`` and ``stride``
0 (no grid) are the paper's ablations. Our reading: at least one token stays, and each of several images has
its own softmax, grid and budget.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from foveate.export.pruning.in_llm import InLLMPruner, PruneLayer, in_proportion
from foveate.export.pruning.method import PositionMode
from foveate.export.pruning.options import option
from foveate.export.pruning.prompt_state import Extra, PromptState
from foveate.export.spec import DecoderSpec, ModelSpec

__all__ = ["Method"]


@dataclass(frozen=True)
class Method(InLLMPruner):
    """Attention without rotary embedding, and a grid. The module's docstring explains the options."""

    reads_question: ClassVar[bool] = True
    fills = False

    position_mode: PositionMode = "keep"
    layers: tuple[int, ...] | None = None
    stride: int = option(3, 0)
    rope: bool = False

    def prune_layers(self, spec: DecoderSpec) -> tuple[PruneLayer, ...]:
        layers = in_proportion((8 / 32, 16 / 32), spec) if self.layers is None else self.layers
        return tuple(self.prune_layer(spec, layer, layer - 1) for layer in layers)

    def leaves(self, spec: ModelSpec, keep: int, entered: int) -> dict[str, int]:
        """Return upper bounds, which assume that no token of the grid is among the best-scored ones."""
        rows, columns = spec.vision.grid
        tiles = spec.vision.image_tokens // spec.vision.num_tokens
        grid = -(-rows // self.stride) * -(-columns // self.stride) * tiles if self.stride else 0
        left = [min(keep + grid, entered)]
        for _ in self.prune_layers(spec.decoder)[1:]:
            left.append(max(1, left[-1] * (2 * keep + 1) ** 2 // (2 * entered) ** 2))
        return {f"pruner.{stage}": min(count, entered) for stage, count in enumerate(left)}

    def extra_inputs(self, stage: int) -> tuple[Extra, ...]:
        own = ("entered",) if stage else ("patch", "columns") if self.stride else ()
        return *own, *(("position_ids",) if self.rope else ())

    def select(self, stage: int, state: PromptState) -> Tensor:
        score = state.image_attention(rotated=self.rope)
        if stage == 0:
            return state.best_of_image(score, state.keep) | self._grid(state)
        twice, entered = 2 * state.keep + 1, 2 * state.entered
        left = state.rows_of_image() * twice * twice // (entered * entered).clamp(min=1)
        return state.best_of_image(score, left.clamp(min=1))

    def _grid(self, state: PromptState) -> Tensor:
        """Mark the tokens of the grid: ``[1,T]`` bool."""
        if self.stride == 0:
            return torch.zeros_like(state.visual)
        y, x = state.patch // state.columns, state.patch % state.columns
        return (state.patch >= 0) & (y % self.stride == 0) & (x % self.stride == 0)

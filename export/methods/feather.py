"""feather: tokens with the most last-token attention without RoPE, and an even grid; again in a middle layer.

FEATHER (Endo, Wang, Yeung-Levy, "Feather the Throttle: Revisiting Visual Token Pruning for Vision-Language Model
Acceleration", ICCV 2025, arXiv 2412.13180), after the published code. With rotary embedding in it, an early layer's
attention prefers what stands last in the prompt: the bottom of the picture. So the score leaves it out, a grid keeps
every part of the picture, and most pruning waits until attention can be trusted.

In: the prompt at the input of layers ``layers`` - 1. Out: before the layers in ``layers``, the visual tokens of each
picture that count, in their order, and all text.

1. phi_-R = softmax over the picture's tokens of q k / sqrt(d), from the weights of the layer before the cut, without
   rotary embedding, q of the prompt's last token; mean over heads.
2. First cut: the ``keep`` tokens of the highest phi_-R, and besides them every ``stride``-th token of every
   ``stride``-th row of the grid. How many that are depends on the picture: ``keep`` at least.
3. Each later cut: floor(n rho^2) of the n tokens that are left, by phi_-R anew. The grid's tokens are not protected (the
   published code's comment says so, the code does otherwise). The publication starts from the share rho and has keep =
   floor(N rho) of N tokens; here rho = (keep + 1/2) / N, the middle of the shares that give this ``keep``.

The published defaults are ``layers`` 8, 16 of 32, in proportion for decoders of another depth, ``stride`` 3 and
``keep`` 30 % of the tokens. ``keep`` is the number of step 2; the mean over the layers is higher, since everything runs
through the first quarter. Positions stay those of the whole prompt. Our reading: at least one token stays; where
several pictures are in the prompt each has its own softmax, grid and numbers. ``rope`` and ``stride`` 0 (no grid) are
the paper's ablations.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from foveate.export.pruning import method
from foveate.export.pruning.in_llm import Cut, Inside, Rows, best_of_picture, in_proportion, share_of
from foveate.export.spec import DecoderSpec, ModelSpec

__all__ = ["Method"]


@dataclass(frozen=True)
class Method(Inside):
    """Attention without rotary embedding and a grid. The options are explained in the module's docstring."""

    reads_question: ClassVar[bool] = True
    fills: ClassVar[bool] = False

    position_mode: Literal["compact", "keep"] = "keep"
    layers: tuple[int, ...] | None = None
    stride: int = method.option(3, 0)
    rope: bool = False

    def cuts(self, spec: DecoderSpec) -> tuple[Cut, ...]:
        layers = in_proportion((8 / 32, 16 / 32), spec) if self.layers is None else self.layers
        return tuple(self.at(spec, layer, layer - 1) for layer in layers)

    def leaves(self, spec: ModelSpec, keep: int, entered: int) -> dict[str, int]:
        """As if no token of the grid were among the chosen."""
        rows, columns = spec.vision.grid
        tiles = spec.vision.picture_tokens // spec.vision.num_tokens
        grid = -(-rows // self.stride) * -(-columns // self.stride) * tiles if self.stride else 0
        left = [min(keep + grid, entered)]
        for _ in self.cuts(spec.decoder)[1:]:
            left.append(max(1, left[-1] * (2 * keep + 1) ** 2 // (2 * entered) ** 2))
        return {f"pruner.{stage}": min(count, entered) for stage, count in enumerate(left)}

    def reads(self, stage: int) -> tuple[str, ...]:
        own = ("entered",) if stage else ("patch", "columns") if self.stride else ()
        return *own, *(("position_ids",) if self.rope else ())

    def stays(self, stage: int, rows: Rows) -> Tensor:
        score = rows.picture_attention(rotated=self.rope)
        if stage == 0:
            return best_of_picture(score, rows, rows.keep) | self._grid(rows)
        twice, entered = 2 * rows.keep + 1, 2 * rows.entered
        left = share_of(rows) * twice * twice // (entered * entered).clamp(min=1)
        return best_of_picture(score, rows, left.clamp(min=1))

    def _grid(self, rows: Rows) -> Tensor:
        """``[1,T]`` bool."""
        if self.stride == 0:
            return torch.zeros_like(rows.visual)
        y, x = rows.patch // rows.columns, rows.patch % rows.columns
        return (rows.patch >= 0) & (y % self.stride == 0) & (x % self.stride == 0)

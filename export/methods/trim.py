"""trim: the tokens least similar to the question in CLIP's joint space, and one mean of the rest.

TRIM (Song et al., "Less is More: A Simple yet Effective Token Reduction Method for Efficient Multi-modal
LLMs", COLING 2025, arXiv 2409.10994), after the published code. It acts before the projector.

Input: patch features ``[B,N,Dv]`` and the joint space ``[B,N,J]``, ``[B,S,J]``, neither of them normalised.
Output: ``keep`` rows: keep - 1 patches in raster order and the mean row, whose ``kept`` is -1. (The
publication does not count the mean row: its 64 tokens are ``keep`` = 65.)

1. *Score*: softmax over patches of the **negated** dot product with the text, as in the published code,
   because CLIP's patches point away from what they show. ``sign`` "positive" is for a CLIP whose patches were
   trained to point towards it.
2. The keep - 1 patches with the highest scores stay.
3. All others become one token, their mean.

``auto`` is the published automatic ratio. Only patches whose score is above Q3 + 1.5 (Q3 - Q1) stay, at most
keep - 1; Q1 and Q3 are quartiles of the image's own scores. There may then be fewer than ``keep`` rows.
Positions are renumbered. Our reading: ``keep`` = N keeps every patch and has no mean row; the dot product
with a text of several segments (published: one) is the mean over the segments; without a text the patches
that stay lie at even distances; ties go to the first patch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from foveate.export.pruning import selection
from foveate.export.pruning.pre_llm import PreLLMPruner
from foveate.export.pruning.selection import Keep
from foveate.export.spec import ModelSpec

__all__ = ["Method"]

_FINE = 2.0**22  # dot products are rounded to multiples of largest / _FINE (see similarity._FINE)


@dataclass(frozen=True)
class Method(PreLLMPruner):
    """Patches by the question, and the mean of the rest. The module's docstring explains the options."""

    reads_question: ClassVar[bool] = True
    source: ClassVar[Literal["projected", "features"]] = "features"
    merges: ClassVar[bool] = True

    sign: Literal["negative", "positive"] = "negative"
    auto: bool = False

    @property
    def fills(self) -> bool:
        return not self.auto

    def taps(self, spec: ModelSpec) -> tuple[str, ...]:
        return "clip_image", "clip_text"

    def reduce(
        self, tokens: Tensor, taps: dict[str, Tensor], keep: Keep, grid: tuple[Keep, Keep]
    ) -> tuple[Tensor, ...]:
        size = tokens.shape[1]
        index = torch.arange(size, device=tokens.device)
        score, asked = self.score(taps["clip_image"], taps["clip_text"])
        budget = torch.full((tokens.shape[0], 1), keep, dtype=torch.int64, device=tokens.device)
        # with keep = N nothing is left for a mean
        number = budget - 1 if self.auto else budget - 1 + budget // size
        if self.auto:
            number = torch.minimum(number, selection.outliers(score.softmax(-1)))
        even = (index + 1) * number // size > index * number // size
        stays = (asked & (selection.rank(score) < number)) | (~asked & even)
        rest = (~stays).float()
        tier = torch.cat([2 * stays.to(torch.int64), rest.amax(1, keepdim=True).to(torch.int64)], 1)
        place = selection.in_order(tier, keep)
        mean = torch.matmul(rest[:, None, :], tokens.float()) / rest.sum(1).clamp(min=1)[:, None, None]
        count = (tier > 0).to(torch.int64).sum(1)
        valid = torch.arange(keep, device=tokens.device) < count[:, None]
        rows = selection.gather(torch.cat([tokens, mean.to(tokens.dtype)], 1), place)
        rows = torch.where(valid[:, :, None], rows, torch.zeros_like(rows[:, :1, :1]))
        kept = torch.where(valid & (place < size), place, -1)
        owner = torch.where(stays, stays.float().cumsum(1).to(torch.int64), count[:, None]) - 1
        return rows, kept, count, owner

    def score(self, patches: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        """Return the signed dot product of each patch and the text, mean over its rows, ``[B,N]``.

        Also returns ``[B,1]`` bool: there is a text.
        """
        text = text.float()
        words = (text.abs().amax(-1) > 0).float().sum(1, keepdim=True)
        dot = torch.matmul(patches.float(), (text.sum(1) / words.clamp(min=1))[:, :, None])[..., 0]
        largest = dot.abs().amax(1, keepdim=True).clamp(min=1e-30)
        level = (dot / largest * _FINE).round() / _FINE * largest
        return level if self.sign == "positive" else -level, words > 0

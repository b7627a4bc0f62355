"""visionzip: the class token, the tokens it attends to most, and a few merged tokens for the rest.

VisionZip (Yang et al., "VisionZip: Longer is Better but Not Necessary in Vision Language Models", CVPR 2025, arXiv
2412.04467), after the published code. It acts before the projector; the question is not read.

In: patch features ``[B,N,Dv]``, the class token's feature ``[B,1,Dv]``, its attention per head ``[B,H,N]`` and the keys
``[B,N,dk]`` (mean over heads) of one layer. Out: exactly ``keep`` rows, which are not in raster order: the class token,
dominant patches in raster order, contextual rows in raster order of their targets. ``kept`` is -1 for the class token
and, for a contextual row, its target: the mixture stands there.

1. *Dominant*: the class token and the keep - contextual - 1 patches that it attends to most (sum over heads).
2. *Targets*: of the n other patches every step-th from the first on, step = max(1, n // contextual), until there are
   ``contextual``.
3. *Contextual*: every patch that is left goes to the target whose key is most similar (cosine); the row is the target's
   feature **plus** the mean of those that went to it. The paper speaks of an average; the published code adds, and so
   do we.

``contextual`` is by default 5 of 32 tokens, rounded down: 10 of 64 as in the published code, and the 5, 20 and 30 of 32,
128 and 192 with which others run it; a number sets it for every budget. The last layer that runs gives attention and
keys. Positions are renumbered. Our reading: ``keep`` = N is every patch and no class token; ``contextual`` is at most
keep - 1; ties go to the first patch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from foveate.export.pruning import method, selection
from foveate.export.spec import ModelSpec

__all__ = ["Method"]


@dataclass(frozen=True)
class Method(method.Method):
    """Dominant and contextual tokens. The options are explained in the module's docstring."""

    source: ClassVar[Literal["projected", "features"]] = "features"
    merges: ClassVar[bool] = True

    contextual: int | None = method.option(None, 0, 4096)
    layer: int = -1

    def taps(self, spec: ModelSpec) -> tuple[str, ...]:
        layered = (method.tap(spec, offer, self.layer) for offer in ("cls_attention_heads", "keys"))
        return "cls_feature", *layered

    def reduce(
        self, tokens: Tensor, taps: dict[str, Tensor], keep: method.Keep, grid: tuple[int, int]
    ) -> tuple[Tensor, ...]:
        cls_feature, attention, keys = taps.values()
        size = tokens.shape[1]
        index = torch.arange(size, device=tokens.device)
        budget = torch.full((1,), keep, dtype=torch.int64, device=tokens.device)
        whole = budget // size  # 1 where every patch stays, else 0
        contextual = self.contextual_of(budget) * (1 - whole)
        patches = budget - contextual - 1 + whole
        dominant = method.rank(attention.float().sum(1)) < patches
        target = _every(~dominant, size - patches, contextual)
        member = ~(dominant | target) & (contextual > 0)
        anchor = selection.closest(selection.cosines(keys), target)[1]
        tier = torch.where(dominant, 2, target.to(torch.int64))
        first = (3 - 3 * whole).expand_as(tier[:, :1])  # the class token, before all patches or behind them
        place = selection.in_order(torch.cat([first, tier], 1), keep)
        rows, kept = method.gather(torch.cat([cls_feature, tokens], 1), place), place - 1
        into = (anchor[:, None, :] == kept[:, :, None]) & member[:, None, :]  # [B,R,N]
        rows = _plus_mean(rows, tokens, into.float())
        owner = selection.owners(kept, torch.where(member, anchor, torch.where(dominant | target, index, -1)))
        return rows, kept, method.count(kept), owner

    def contextual_of(self, budget: Tensor) -> Tensor:
        """How many of ``budget [1]`` rows are contextual."""
        if self.contextual is None:
            return budget * 5 // 32
        return torch.clamp(budget - 1, max=self.contextual)


def _every(rest: Tensor, number: Tensor, wanted: Tensor) -> Tensor:
    """``wanted [1]`` at even distances of the ``number [1]`` marked places of ``rest [B,N]``, the first included."""
    step = (number // wanted.clamp(min=1)).clamp(min=1)
    place = rest.float().cumsum(1).to(torch.int64) - 1
    return rest & (place % step == 0) & (place // step < wanted)


def _plus_mean(rows: Tensor, tokens: Tensor, into: Tensor) -> Tensor:
    """``rows [B,R,D]`` plus the mean of the ``tokens [B,N,D]`` that ``into [B,R,N]`` gives them; without any, as they are."""
    number = into.sum(-1, keepdim=True)
    mean = torch.matmul(into, tokens.float()) / number.clamp(min=1)
    return torch.where(number > 0, (rows.float() + mean).to(rows.dtype), rows)

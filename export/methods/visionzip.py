"""visionzip: the class token, the tokens it attends to most, and a few merged tokens for the rest.

VisionZip (Yang et al., "VisionZip: Longer is Better but Not Necessary in Vision Language Models", CVPR 2025,
arXiv 2412.04467), after the published code. It acts before the projector. The question is not read.

Input: patch features ``[B,N,Dv]``, the class token's feature ``[B,1,Dv]``, its attention per head ``[B,H,N]``
and the keys ``[B,N,dk]`` (mean over heads) of one layer. Output: exactly ``keep`` rows, which are not in
raster order: the class token, dominant patches in raster order, and contextual rows in raster order of their
targets. ``kept`` is -1 for the class token. For a contextual row it is the target, whose place the mixture
takes.

1. *Dominant*: the class token and the keep - contextual - 1 patches that it attends to most (sum over heads).
2. *Targets*: every step-th of the n other patches, from the first on, step = max(1, n // contextual), until
   there are ``contextual`` of them.
3. *Contextual*: every remaining patch goes to the target whose key is most similar (cosine). The row is the
   target's feature **plus** the mean of the patches that went to it. The paper speaks of an average; the
   published code adds, and so do we.

``contextual`` is by default 5 of 32 tokens, rounded down. This gives 10 of 64, as in the published code, and
the 5, 20 and 30 of 32, 128 and 192 with which others run it. A number sets it for every budget. The last
layer that runs gives attention and keys. Positions are renumbered. Our reading: ``keep`` = N keeps every
patch and no class token; ``contextual`` is at most keep - 1; ties go to the first patch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from foveate.export.pruning import merging, selection, similarity
from foveate.export.pruning.options import option
from foveate.export.pruning.pre_llm import PreLLMPruner
from foveate.export.pruning.selection import Keep
from foveate.export.pruning.taps import tap
from foveate.export.spec import ModelSpec

__all__ = ["Method"]


@dataclass(frozen=True)
class Method(PreLLMPruner):
    """Dominant and contextual tokens. The module's docstring explains the options."""

    source: ClassVar[Literal["projected", "features"]] = "features"
    merges: ClassVar[bool] = True

    contextual: int | None = option(None, 0, 4096)
    layer: int = -1

    def taps(self, spec: ModelSpec) -> tuple[str, ...]:
        layered = (tap(spec, offer, self.layer) for offer in ("cls_attention_heads", "keys"))
        return "cls_feature", *layered

    def reduce(
        self, tokens: Tensor, taps: dict[str, Tensor], keep: Keep, grid: tuple[Keep, Keep]
    ) -> tuple[Tensor, ...]:
        cls_feature, attention, keys = taps.values()
        size = tokens.shape[1]
        index = torch.arange(size, device=tokens.device)
        budget = torch.full((1,), keep, dtype=torch.int64, device=tokens.device)
        whole = budget // size  # 1 if every patch stays, else 0
        contextual = self.contextual_of(budget) * (1 - whole)
        patches = budget - contextual - 1 + whole
        dominant = selection.rank(attention.float().sum(1)) < patches
        target = _every(~dominant, size - patches, contextual)
        member = ~(dominant | target) & (contextual > 0)
        anchor = similarity.closest(similarity.cosines(keys), target)[1]
        tier = torch.where(dominant, 2, target.to(torch.int64))
        first = (3 - 3 * whole).expand_as(tier[:, :1])  # the class token, before all patches or behind them
        place = selection.in_order(torch.cat([first, tier], 1), keep)
        rows, kept = selection.gather(torch.cat([cls_feature, tokens], 1), place), place - 1
        into = (anchor[:, None, :] == kept[:, :, None]) & member[:, None, :]  # [B,R,N]
        rows = _plus_mean(rows, tokens, into.float())
        owner = merging.owners(kept, torch.where(member, anchor, torch.where(dominant | target, index, -1)))
        return rows, kept, selection.count(kept), owner

    def contextual_of(self, budget: Tensor) -> Tensor:
        """Return the number of contextual rows among ``budget [1]`` rows."""
        if self.contextual is None:
            return budget * 5 // 32
        return torch.clamp(budget - 1, max=self.contextual)


def _every(rest: Tensor, number: Tensor, wanted: Tensor) -> Tensor:
    """Mark ``wanted [1]`` of the true places of ``rest [B,N]`` at even distances, from the first.

    ``number [1]`` is the number of true places.
    """
    step = (number // wanted.clamp(min=1)).clamp(min=1)
    place = rest.float().cumsum(1).to(torch.int64) - 1
    return rest & (place % step == 0) & (place // step < wanted)


def _plus_mean(rows: Tensor, tokens: Tensor, into: Tensor) -> Tensor:
    """Add to ``rows [B,R,D]`` the mean of the ``tokens [B,N,D]`` that ``into [B,R,N]`` marks for them.

    A row without such tokens stays as it is.
    """
    number = into.sum(-1, keepdim=True)
    mean = torch.matmul(into, tokens.float()) / number.clamp(min=1)
    return torch.where(number > 0, (rows.float() + mean).to(rows.dtype), rows)

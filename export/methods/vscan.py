"""vscan: tokens with the most class-token attention, per window and overall; dropped ones are merged in.

This is the encoder stage of VScan (Zhang et al., "VScan: Rethinking Visual Token Reduction for Efficient
Large Vision-Language Models", TMLR 2026, arXiv 2505.22654), after the published code. Its second stage, which
prunes to a third inside the language model, is not part of this method. The question is not read.

Input: the projected tokens ``[B,N,D]`` and the class token's attention ``[B,N]`` (families without one: the
attention a patch receives) in a shallow and in the last layer. Output: **at most** ``keep`` tokens in raster
order (``count``), each a mixture. ``kept`` is the token whose place each takes.

1. *Local scan.* The grid is cut into ``windows`` x ``windows`` windows. In each, the int(keep local) //
   windows^2 tokens of highest shallow attention stay.
2. *Global scan.* Of the others, the keep - int(keep local) tokens of highest deep attention stay. If the
   division in step 1 has a remainder, fewer than ``keep`` tokens stay in all, as in the published code.
3. *Merging.* Every other token goes to the kept token that is most similar to it (cosine of projected
   tokens). A row becomes the mean of its tokens.

local = 0.5 and 4 x 4 windows (of 6 x 6 tokens on a 24 x 24 grid) are published. ``layer`` is the shallow
layer, counted from 0. The default is 5, as published for the 24 layers of CLIP ViT-L (of which 23 run), and
in proportion for encoders of another depth; for Qwen2.5-VL this gives the published 7 of 32. The published
averages of 64, 128 and 192 tokens are ``keep`` 96, 192 and 288 here. Positions are renumbered. Our reading:
``keep`` = N keeps all; ties go to the first; windows of other grids differ by one row or column at most.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from foveate.export.pruning import merging, selection, similarity
from foveate.export.pruning.options import option
from foveate.export.pruning.pre_llm import PreLLMPruner
from foveate.export.pruning.selection import Keep
from foveate.export.pruning.taps import full_layer, saliency, tap
from foveate.export.spec import ModelSpec

__all__ = ["Method"]


@dataclass(frozen=True)
class Method(PreLLMPruner):
    """Local and global scan. The module's docstring explains the options."""

    fills = False
    merges: ClassVar[bool] = True

    local: float = option(0.5, 0, 1)
    windows: int = option(4, 1, 64)
    layer: int | None = None
    deep_layer: int = -1

    def taps(self, spec: ModelSpec) -> tuple[str, ...]:
        shallow = full_layer(spec, 5 / 23) if self.layer is None else self.layer
        names = [tap(spec, saliency(spec), layer) for layer in (shallow, self.deep_layer)]
        return tuple(dict.fromkeys(names))  # both are the same if the encoder has one layer

    def reduce(
        self, tokens: Tensor, taps: dict[str, Tensor], keep: Keep, grid: tuple[Keep, Keep]
    ) -> tuple[Tensor, ...]:
        size = tokens.shape[1]
        index = torch.arange(size, device=tokens.device)
        shallow, deep = next(iter(taps.values())).float(), [*taps.values()][-1].float()
        budget = torch.full((1,), keep, dtype=torch.int64, device=tokens.device)
        share = budget * round(self.local * 10**6) // 10**6
        near = selection.rank_within(shallow, self.window(index, grid)) < share // self.windows**2
        far = selection.rank(torch.where(near, -1.0, deep)) < budget - share
        mask = near | far | (index < budget // size * size)
        rows, kept, count = selection.at_most(tokens, mask, keep)
        anchor = similarity.closest(similarity.cosines(tokens), mask)[1]
        member = (~mask & (anchor >= 0)).float()
        share = torch.where(anchor[:, None, :] == kept[:, :, None], member[:, None, :], 0.0)
        rows = merging.mix(rows, torch.ones_like(kept, dtype=torch.float32), tokens, share)
        return rows, kept, count, merging.owners(kept, torch.where(mask, index, anchor))

    def window(self, index: Tensor, grid: tuple[Keep, Keep]) -> Tensor:
        """Return the window that each token is in: ``[N]`` int64."""
        y, x = selection.coordinates(index, grid[1])
        return y * self.windows // grid[0] * self.windows + x * self.windows // grid[1]

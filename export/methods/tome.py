"""tome: merged patches: the most similar ones, in every encoder layer; their number is fixed at build.

Token Merging (Bolya et al., "Token Merging: Your ViT But Faster", ICLR 2023, arXiv 2210.09461) works between
the attention and the MLP of each layer, as published. There is no pruner graph: the vision encoder returns
the remaining tokens. The question is not read.

Input: the rows x ``[B,n+1,Dv]`` of a layer after its attention, class token first, and its keys
``[B,H,n+1,dk]``. Output: ``keep`` mixtures in raster order, which the projector turns into tokens. ``kept``
is the patch whose place each takes.

1. The rows are split into those at even places (the class token is the first) and those at odd places. For
   every even row the most similar odd row is found, by the cosine of the keys (mean over heads).
2. The r even rows with the best matches, never the class token, are merged into their matches. The means are
   weighted by size, the number of patches in a row. The remaining even rows come before the odd rows in the
   next layer.
3. *Proportional attention*: log(size) is added to the scores of each key, as if every patch were present.

**``keep`` is an option and is fixed when the bundle is built**, since each layer's shapes follow from it. The
default is 2 / 9 of the patches, or the smallest number that the layers can reach if that is larger. Each
layer can merge half of its patches, so at least N / (depth + 1) patches remain. The publication uses the same
r in every layer; here N - keep patches are spread evenly, so that r differs by one at most.

Our reading, for language models: a merged row takes the place of the odd patch, and the final rows are put
into raster order. (The paper is about classification, where the order does not matter.) Positions are
renumbered. Ties go to the first.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor

from foveate.engines.errors import UserError
from foveate.export.pruning import merging, selection, similarity
from foveate.export.pruning.encoder_merging import EncoderMerger
from foveate.export.pruning.options import option
from foveate.export.spec import ModelSpec, StartMerging

__all__ = ["Method"]


@dataclass(frozen=True)
class Method(EncoderMerger):
    """Token merging. ``keep`` is the number of mixtures that remain per image."""

    keep: int | None = option(None, 1, 1 << 20)

    def rows(self, spec: ModelSpec) -> int:
        """Return ``keep``. Raises UserError (code 2) for a number that the encoder's layers cannot reach."""
        size, depth = spec.vision.num_tokens, spec.vision.depth
        # a layer can merge half of its patches; with even shares the last layer reaches this limit first
        least = -(-size // (depth + 1))
        keep = max(size * 2 // 9, least) if self.keep is None else self.keep
        if not least <= keep <= size:
            raise UserError(
                f"tome: bad value for keep | got {keep}, "
                f"expected {least}..{size}, which {depth} layers can reach | --set keep=...",
                code=2,
            )
        return keep

    def merging(self, spec: ModelSpec) -> StartMerging:
        size, depth = spec.vision.num_tokens, spec.vision.depth
        return partial(_Merging, _steps(size, self.rows(spec), depth))


def _steps(size: int, keep: int, depth: int) -> tuple[int, ...]:
    """Return the number of patches that each of ``depth`` layers merges."""
    return tuple(b - a for a, b in pairwise((size - keep) * i // depth for i in range(depth + 1)))


class _Merging:
    """State of a batch on its way through the layers (``spec.Merging``).

    ``steps`` holds the number of merges in each layer.
    """

    def __init__(self, steps: tuple[int, ...], batch: int, patches: int, device: torch.device) -> None:
        self.steps = iter(steps)
        self.size: Tensor | None = None  # [B,n+1] float32; None: 1 each
        self.place = torch.arange(-1, patches, device=device).repeat(batch, 1)  # [B,n+1], -1 the class token
        self.into = torch.arange(patches, device=device).repeat(batch, 1)  # [B,N]: place of each patch's row

    def bias(self) -> Tensor | None:
        if self.size is None:
            return None
        rows = self.size.shape[1]  # expanded, since engines want a number for every pair
        return self.size.log()[:, None, None, :].expand(-1, 1, rows, -1)

    def merge(self, x: Tensor, key: Tensor) -> Tensor:
        step = next(self.steps)
        if not step:
            return x
        size = torch.ones_like(self.place).float() if self.size is None else self.size
        leaves, match = _matches(key.float().mean(1), step)
        gone, stay = selection.marked(leaves, step), selection.marked(~leaves, leaves.shape[1] - step)
        goes = match.gather(1, gone)  # [B,r]: index of the odd row
        odd = torch.arange(x.shape[1] // 2, device=x.device)
        share = torch.where(goes[:, None, :] == odd[:, None], size[:, 0::2].gather(1, gone)[:, None, :], 0.0)
        merged = merging.mix(x[:, 1::2], size[:, 1::2], selection.gather(x[:, 0::2], gone), share)
        self._move(self.place[:, 0::2].gather(1, gone), self.place[:, 1::2].gather(1, goes))
        self.place = torch.cat([self.place[:, 0::2].gather(1, stay), self.place[:, 1::2]], 1)
        self.size = torch.cat([size[:, 0::2].gather(1, stay), size[:, 1::2] + share.sum(-1)], 1)
        return torch.cat([selection.gather(x[:, 0::2], stay), merged], 1)

    def _move(self, gone: Tensor, there: Tensor) -> None:
        """Record that the patches at ``gone [B,r]`` are now part of the rows at ``there [B,r]``."""
        moved = torch.where(self.into[:, :, None] == gone[:, None, :], there[:, None, :], -1).amax(-1)
        self.into = torch.where(moved >= 0, moved, self.into)

    def finish(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        order = (-self.place[:, 1:]).float().topk(features.shape[1], dim=1).indices
        kept = self.place[:, 1:].gather(1, order)
        return selection.gather(features, order), kept, selection.count(kept), merging.owners(kept, self.into)


def _matches(metric: Tensor, number: int) -> tuple[Tensor, Tensor]:
    """Find the ``number`` even rows of ``metric [B,n+1,dk]`` that are most similar to an odd row.

    Returns their mask ``[B,A]`` bool, and the index of the most similar odd row ``[B,A]`` for every even row.
    """
    similar = similarity.cosines(metric[:, 0::2], metric[:, 1::2])
    best = similar.amax(-1)
    odd = torch.arange(similar.shape[2], device=metric.device)
    match = torch.where(similar == best[:, :, None], odd, similar.shape[2]).amin(-1)
    even = torch.arange(similar.shape[1], device=metric.device)
    return selection.rank(torch.where(even == 0, -4.0, best)) < number, match

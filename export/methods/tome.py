"""tome: merged patches: the most similar ones, in every encoder layer; their number is fixed at build.

Token Merging (Bolya et al., "Token Merging: Your ViT But Faster", ICLR 2023, arXiv 2210.09461), between the attention and
the MLP of each layer, as published. There is no pruner graph: the vision encoder gives the tokens that are left. The
question is not read.

In: the rows x ``[B,n+1,Dv]`` of a layer behind its attention, class token first, and its keys ``[B,H,n+1,dk]``. Out:
``keep`` mixtures in raster order, of which the projector makes tokens; ``kept`` is where each stands.

1. Rows at even places (the class token is the first) stand against rows at odd places. Of every even row the most
   similar odd row is found: cosine of the keys, mean over heads.
2. The r even rows whose match is best, never the class token, are merged into their matches: means weighted by size,
   the number of patches in a row. What is left of the even rows stands before the odd rows in the next layer.
3. *Proportional attention*: log(size) is added to the scores of each key, as if every patch were there.

**``keep`` is an option and is fixed when the bundle is built**: each layer's shapes follow from it. By default it is 2 / 9
of the patches, or what the layers can come to: each can merge half of its patches, so N / (depth + 1) is the least. The
publication takes the same r in every layer; here N - keep patches are spread evenly, so that r differs by one at most.

Our reading, for language models: a merged row stands where the odd patch stood, and in the end rows are put into raster
order (published for classification, where order is of no matter). Positions are renumbered. Ties go to the first.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import ClassVar, Literal

import torch
from torch import Tensor

from foveate.engines.errors import UserError
from foveate.export.pruning import method, selection
from foveate.export.spec import ModelSpec, StartMerging

__all__ = ["Method"]


@dataclass(frozen=True)
class Method(method.Method):
    """Token merging. ``keep``: how many mixtures are left of a picture."""

    where: ClassVar[Literal["encoder", "before", "inside"]] = "encoder"
    merges: ClassVar[bool] = True

    keep: int | None = method.option(None, 1, 1 << 20)

    def taps(self, spec: ModelSpec) -> tuple[str, ...]:
        return ("layers",)

    def fixed_keep(self, spec: ModelSpec) -> int:
        """Raises UserError (code 2) for what the encoder's layers cannot come to."""
        size, depth = spec.vision.num_tokens, spec.vision.depth
        least = -(
            -size // (depth + 1)
        )  # of an even share each layer can merge as much as half of what it has
        keep = max(size * 2 // 9, least) if self.keep is None else self.keep
        if not least <= keep <= size:
            raise UserError(
                f"tome: bad value for keep | got {keep}, expected {least}..{size}, what {depth} layers can come to "
                "| --set keep=...",
                code=2,
            )
        return keep

    def merging(self, spec: ModelSpec) -> StartMerging:
        size, depth = spec.vision.num_tokens, spec.vision.depth
        return partial(_Merging, _steps(size, self.fixed_keep(spec), depth))


def _steps(size: int, keep: int, depth: int) -> tuple[int, ...]:
    """How many patches each of ``depth`` layers merges."""
    return tuple(b - a for a, b in pairwise((size - keep) * i // depth for i in range(depth + 1)))


class _Merging:
    """The rows of a batch on their way through the layers (``parts.Merging``). ``steps``: how many each layer merges."""

    def __init__(self, steps: tuple[int, ...], batch: int, patches: int, device: torch.device) -> None:
        self.steps = iter(steps)
        self.size: Tensor | None = None  # [B,n+1] float32; None: 1 each
        self.place = torch.arange(-1, patches, device=device).repeat(batch, 1)  # [B,n+1], -1 the class token
        self.into = torch.arange(patches, device=device).repeat(
            batch, 1
        )  # [B,N]: where each patch's row stands

    def bias(self) -> Tensor | None:
        if self.size is None:
            return None
        rows = self.size.shape[1]  # engines want a number for every pair
        return self.size.log()[:, None, None, :].expand(-1, 1, rows, -1)

    def merge(self, x: Tensor, key: Tensor) -> Tensor:
        step = next(self.steps)
        if not step:
            return x
        size = torch.ones_like(self.place).float() if self.size is None else self.size
        leaves, match = _matches(key.float().mean(1), step)
        gone, stay = method.marked(leaves, step), method.marked(~leaves, leaves.shape[1] - step)
        goes = match.gather(1, gone)  # [B,r]: which odd row
        odd = torch.arange(x.shape[1] // 2, device=x.device)
        share = torch.where(goes[:, None, :] == odd[:, None], size[:, 0::2].gather(1, gone)[:, None, :], 0.0)
        merged = selection.mix(x[:, 1::2], size[:, 1::2], method.gather(x[:, 0::2], gone), share)
        self._move(self.place[:, 0::2].gather(1, gone), self.place[:, 1::2].gather(1, goes))
        self.place = torch.cat([self.place[:, 0::2].gather(1, stay), self.place[:, 1::2]], 1)
        self.size = torch.cat([size[:, 0::2].gather(1, stay), size[:, 1::2] + share.sum(-1)], 1)
        return torch.cat([method.gather(x[:, 0::2], stay), merged], 1)

    def _move(self, gone: Tensor, there: Tensor) -> None:
        """What stood at ``gone [B,r]`` now stands ``there [B,r]``."""
        moved = torch.where(self.into[:, :, None] == gone[:, None, :], there[:, None, :], -1).amax(-1)
        self.into = torch.where(moved >= 0, moved, self.into)

    def finish(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        order = (-self.place[:, 1:]).float().topk(features.shape[1], dim=1).indices
        kept = self.place[:, 1:].gather(1, order)
        return method.gather(features, order), kept, method.count(kept), selection.owners(kept, self.into)


def _matches(metric: Tensor, number: int) -> tuple[Tensor, Tensor]:
    """Of ``metric [B,n+1,dk]``: the ``number`` even rows that are most similar to an odd row ``[B,A]``, and which it is."""
    similar = selection.cosines(metric[:, 0::2], metric[:, 1::2])
    best = similar.amax(-1)
    odd = torch.arange(similar.shape[2], device=metric.device)
    match = torch.where(similar == best[:, :, None], odd, similar.shape[2]).amin(-1)
    even = torch.arange(similar.shape[1], device=metric.device)
    return method.rank(torch.where(even == 0, -4.0, best)) < number, match

"""cdpruner: tokens that are diverse and that the question asks for, the likeliest set of a determinantal point process.

CDPruner (Zhang et al., "Beyond Attention or Similarity: Maximizing Conditional Diversity for Token Pruning in MLLMs",
NeurIPS 2025, arXiv 2506.10967), after the published code. Relevance scales each token, similarity makes tokens
exclude one another, and the set whose kernel has the largest determinant is found greedily.

In: the projected tokens ``[B,N,D]``, as published, and for relevance CLIP's joint space ``[B,N,J]``, ``[B,S,J]`` (a row
per text segment). Out: exactly ``keep`` tokens, in raster order.

1. c(i) = mean cosine of patch i and the text segments, *negated*: CLIP's patches point away from what they show.
   r = (c - min + 1e-6) / (max - min) over the picture (the published code has the 1e-6 in the numerator alone).
2. Kernel L(i,j) = r(i) cos(i,j) r(j), cosines of the projected tokens.
3. ``keep`` times the token that raises the determinant of the picked tokens' kernel most.

``theta`` (0..1, published code, off by default): r becomes exp(theta / (2 (1 - theta)) r); more is more relevance.
``relevance``: "auto" is "clip" where the family has the joint space, else "embeddings": the cosine with the question's
words as the language model embeds them, with a positive sign. "none" leaves r out, and so does an empty question.
``sign`` overrides either. Positions are renumbered, as published for LLaVA.

Step 3 is Cholesky's decomposition of the cosines, from which r factors out: the gain of a token is r^2 times the part
of it that the picked ones do not explain. Our reading where the published code divides by rounding noise or by 0:
once the picked tokens explain all others (more picks than dimensions, copies), the most relevant of the rest follow;
a constant relevance is no relevance. The published code scales r over all crops of a picture, here it is per picture.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from foveate.export import picking
from foveate.export.methods import base
from foveate.export.parts import ModelSpec

__all__ = ["Method"]

_EXPLAINED = 1e-4  # squared residual of a unit vector, far above what rounding leaves of 0


@dataclass(frozen=True)
class Method(base.Method):
    """Conditional diversity. The options are explained in the module's docstring."""

    relevance: Literal["auto", "clip", "embeddings", "none"] = "auto"
    sign: Literal["auto", "positive", "negative"] = "auto"
    theta: float | None = base.option(None, 0, 0.999)

    def taps(self, spec: ModelSpec) -> tuple[str, ...]:
        return picking.question_taps(self.relevance, spec)

    def reduce(
        self, tokens: Tensor, taps: dict[str, Tensor], keep: base.Keep, grid: tuple[int, int]
    ) -> tuple[Tensor, Tensor, Tensor]:
        kept = base.marked(_likeliest(picking.cosines(tokens), self.wanted(tokens, taps), keep), keep)
        return base.gather(tokens, kept), kept, base.count(kept)

    def wanted(self, tokens: Tensor, taps: dict[str, Tensor]) -> Tensor:
        """r ``[B,N]`` float32, above 0."""
        none = torch.ones(tokens.shape[:2], device=tokens.device)
        if not taps:
            return none
        cosine, asked = picking.question_relevance(tokens, taps, self.sign)
        low, high = cosine.amin(1, keepdim=True), cosine.amax(1, keepdim=True)
        r = (cosine - low + 1e-6) / (high - low).clamp(min=1e-6)
        if self.theta is not None:
            r = (r * (self.theta / (2 * (1 - self.theta)))).exp()
        return torch.where(asked & (high > low), r, none)


def _likeliest(similar: Tensor, wanted: Tensor, keep: base.Keep) -> Tensor:
    """The greedy choice of ``keep`` tokens as a mask ``[B,N]``; ``similar [B,N,N]``, ``wanted [B,N]``."""
    index = torch.arange(wanted.shape[1], device=wanted.device)
    column = torch.arange(keep, device=wanted.device)
    last_resort = wanted / wanted.amax(1, keepdim=True) - 2  # below any gain

    whole = (
        torch.where(index[:, None] == index, similar, 0.0).sum(-1) > 0.5
    ).float()  # length 1, or a row of zeros

    def more(done: Tensor, explained: Tensor, factor: Tensor, picked: Tensor) -> Tensor:
        return done < column.shape[0]

    def turn(done: Tensor, explained: Tensor, factor: Tensor, picked: Tensor) -> tuple[Tensor, ...]:
        left = whole - explained
        gain = torch.where(left > _EXPLAINED, wanted * wanted * left, last_resort)
        best = picking.first_of(torch.where(picked > 0, -4.0, gain))
        rest = left.gather(1, best)
        known = torch.matmul(factor, picking.row(factor, best)[:, :, None])[..., 0]
        new = (picking.row(similar, best) - known) / rest.clamp(min=_EXPLAINED).sqrt()
        new = torch.where(rest > _EXPLAINED, new, 0.0)
        factor = torch.where(column == done, new[:, :, None], factor)
        return done + 1, explained + new * new, factor, torch.maximum(picked, (index == best).float())

    nothing = torch.zeros_like(wanted)
    factor = torch.zeros(*wanted.shape, keep, device=wanted.device)
    done = torch.zeros((), dtype=torch.int64, device=wanted.device)
    return picking.loop(more, turn, (done, nothing, factor, nothing.clone()))[3] > 0

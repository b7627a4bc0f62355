"""cdpruner: a diverse and relevant set: DPP MAP over cosine similarity weighted by relevance to the question.

CDPruner (Zhang et al., "Beyond Attention or Similarity: Maximizing Conditional Diversity for Token Pruning in
MLLMs", NeurIPS 2025, arXiv 2506.10967), after the published code. Relevance scales each token, and similar
tokens exclude one another. The set whose kernel has the largest determinant is found greedily.

Input: the projected tokens ``[B,N,D]``, as published, and for relevance CLIP's joint space ``[B,N,J]``,
``[B,S,J]`` (a row per text segment). Output: exactly ``keep`` tokens, in raster order.

1. c(i) = mean cosine of patch i and the text segments, *negated*, because CLIP's patches point away from what
   they show. r = (c - min + 1e-6) / (max - min) over the image. The published code has the 1e-6 only in the
   numerator.
2. Kernel L(i,j) = r(i) cos(i,j) r(j), with cosines of the projected tokens.
3. Pick, ``keep`` times, the token that raises the determinant of the picked tokens' kernel most.

Options:

* ``theta`` (0..1, from the published code, off by default): r becomes exp(theta / (2 (1 - theta)) r). A
  larger theta gives relevance more weight.
* ``relevance``: "auto" is "clip" in families with the joint space, else "embeddings". "embeddings" is the
  cosine with the question's words as the language model embeds them, with a positive sign. "none" leaves r
  out, and so does an empty question.
* ``sign`` overrides the sign of the cosine.

Positions are renumbered, as published for LLaVA.

Step 3 is a Cholesky decomposition of the cosines, from which r factors out: the gain of a token is r^2 times
the part of the token that the picked ones do not explain. Our reading covers the cases in which the published
code divides by rounding noise or by 0. Once the picked tokens explain all others (more picks than dimensions,
copies), the most relevant of the rest follow. A constant relevance counts as no relevance.

Images in tiles: the published code scales r over all crops of an image at once, padding included. Here r is
scaled over one tile, without its padding (our reading), because a pruner sees one tile at a time and chooses
the tile's share of the budget in it. The kept tokens differ from the published ones where the lowest or the
highest cosine of a tile is not that of the image. For an image in one tile both are the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from foveate.export.networks.onnx_ops import loop, put
from foveate.export.pruning import selection, similarity
from foveate.export.pruning.options import option
from foveate.export.pruning.pre_llm import PreLLMPruner
from foveate.export.pruning.selection import Keep
from foveate.export.pruning.taps import question_taps
from foveate.export.spec import ModelSpec

__all__ = ["Method"]

_EXPLAINED = 1e-4  # limit of a unit vector's squared residual, far above rounding errors of 0
_FAR = 8.0  # subtracted from the gain of picked tokens, which puts them below any last resort
_NEVER = 1e30  # divisor (under the root) of a row that explains nothing more
_AT_ONCE = 4
"""Picks per iteration of the loop. Each iteration copies the whole factor, so more picks save copies."""


@dataclass(frozen=True)
class Method(PreLLMPruner):
    """Conditional diversity. The options are explained in the module's docstring."""

    reads_question: ClassVar[bool] = True

    relevance: Literal["auto", "clip", "embeddings", "none"] = "auto"
    sign: Literal["auto", "positive", "negative"] = "auto"
    theta: float | None = option(None, 0, 0.999)

    def taps(self, spec: ModelSpec) -> tuple[str, ...]:
        return question_taps(self.relevance, spec)

    def reduce(
        self, tokens: Tensor, taps: dict[str, Tensor], keep: Keep, grid: tuple[Keep, Keep]
    ) -> tuple[Tensor, Tensor, Tensor]:
        kept = selection.marked(_likeliest(similarity.cosines(tokens), self.wanted(tokens, taps), keep), keep)
        return selection.gather(tokens, kept), kept, selection.count(kept)

    def wanted(self, tokens: Tensor, taps: dict[str, Tensor]) -> Tensor:
        """Return the relevance r ``[B,N]`` float32, above 0."""
        none = torch.ones(tokens.shape[:2], device=tokens.device)
        if not taps:
            return none
        cosine, asked = similarity.question_relevance(tokens, taps, self.sign)
        low, high = cosine.amin(1, keepdim=True), cosine.amax(1, keepdim=True)
        r = (cosine - low + 1e-6) / (high - low).clamp(min=1e-6)
        if self.theta is not None:
            r = (r * (self.theta / (2 * (1 - self.theta)))).exp()
        return torch.where(asked & (high > low), r, none)


def _likeliest(similar: Tensor, wanted: Tensor, keep: Keep) -> Tensor:
    """Pick ``keep`` tokens greedily: a mask ``[B,N]`` bool.

    ``similar [B,N,N]`` holds the cosines, ``wanted [B,N]`` the relevance.
    """
    batch, size = wanted.shape
    index = torch.arange(size, device=wanted.device)
    last_resort = wanted / wanted.amax(1, keepdim=True) - 2  # below any gain
    worth = wanted * wanted
    whole = (similarity.diagonal(similar) > 0.5).float()  # length 1, or a row of zeros
    column = torch.zeros(batch, keep + _AT_ONCE, 1, dtype=torch.int64, device=wanted.device)
    number = torch.arange(batch * _AT_ONCE, device=wanted.device)
    place = torch.stack((number // _AT_ONCE, number % _AT_ONCE), 1)  # in the factor, of a turn's picks
    below = torch.arange(2, device=wanted.device)
    last = torch.full((), keep, dtype=torch.int64, device=wanted.device)

    def more(done: Tensor, explained: Tensor, factor: Tensor, picked: Tensor) -> Tensor:
        return done < last

    def turn(done: Tensor, explained: Tensor, factor: Tensor, picked: Tensor) -> tuple[Tensor, ...]:
        added: list[Tensor] = []
        for number in range(_AT_ONCE):
            left = whole - explained
            gain = torch.where(left > _EXPLAINED, worth * left, last_resort)
            best = selection.first_of(gain - picked)
            rest = left.gather(1, best)
            known = torch.matmul(factor.gather(2, column + best[:, :, None])[..., 0][:, None], factor)[:, 0]
            new = selection.row(similar, best) - known
            for other in added:
                new = new - other.gather(1, best) * other
            added.append(new / torch.where(rest > _EXPLAINED, rest, _NEVER).sqrt())
            explained = explained + added[-1] * added[-1]
            picked = torch.where((index == best) & (done + number < last), _FAR, picked)
        rows = torch.stack(added, 1).reshape(-1, size)
        return done + _AT_ONCE, explained, put(factor, place + done * below, rows), picked

    nothing = torch.zeros_like(wanted)
    factor = torch.zeros(batch, keep + _AT_ONCE, size, device=wanted.device)
    done = torch.zeros((), dtype=torch.int64, device=wanted.device)
    return loop(more, turn, (done, nothing, factor, nothing.clone()))[3] > 0

"""sppruner: salient tokens that are relevant to the question, then an adaptive sample of their context.

This implements the *published description* of SPpruner, "Focus-then-Context" (Jiang, Zheng, Zhao, Wang,
Zhang, arXiv 2605.20950). A focus stage combines visual saliency with semantic relevance to find the subjects.
A context stage scans the image with a stride that follows local structural divergence, to keep the
surroundings that relate the subjects. Equations, layers, ratios and code are not public to us. **Every
formula and default below is our reading**, and everything that the description leaves open is an option. The
method needs no training and runs in one pass without a loop.

Input: ``tokens [B,N,D]``, the class token's attention on the patches ``[B,N]`` (families without one: the
attention a patch receives), the patch features ``[B,N,Dv]``, and for relevance the question's words as the
language model embeds them ``[B,W,D]`` or CLIP's joint space ``[B,N,J]``, ``[B,S,J]``. Output: exactly
``keep`` tokens.

1. *Subjects.* s = saliency, r = cosine of token and question (``pool`` over its words, ``sign``), each scaled
   to 0..1 over the image. phi = (s + r) / 2 + eta s r (``interplay``). The product rewards agreement. The sum
   keeps salient tokens that were not asked for, and tokens that were asked for but are not salient. Without a
   question phi = s.
2. *Focus.* The round(rho keep) tokens with the highest phi stay.
3. *Divergence.* d = 1 - mean cosine of a patch and its neighbours in a ``window`` x ``window`` square.
4. *Structure-responsive sampling.* The idea is a walk along ``path`` through all other tokens, with a short
   stride where d is high. A literal walk would stop at a number of tokens that depends on the image. The
   fixed-size equivalent samples the density 1 / stride at equal quantiles. Weights are (d + eps)^gamma (1 +
   proximity g), where g is the share of focus tokens in the surrounding 5 x 5 square. The total weight along
   the path is cut into keep - |focus| equal shares, and the token in the middle of each share stays. No token
   takes more than one share (a stride is at least 1): heavier tokens are first cut to one share, so the count
   is exact. Weights are integers of 20 bits, so ties and constant images give the same result on every
   engine.
5. *Aggregation* (``mu`` > 0). A context token moves by ``mu`` towards the mean of the run of tokens that it
   represents. ``mu`` 0 only selects, since language models were not trained on averages.

The default path is Hilbert's curve. Runs along it are compact patches of the image, not strips.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from foveate.export.pruning import selection, similarity
from foveate.export.pruning.options import option
from foveate.export.pruning.pre_llm import PreLLMPruner
from foveate.export.pruning.selection import Keep
from foveate.export.pruning.taps import question_taps, saliency, tap
from foveate.export.spec import ModelSpec

__all__ = ["Method"]

_LEVELS = 10  # levels of Hilbert's curve, for sides of up to 1,024 tokens
_BITS = 20  # bits of a weight: N weights and their multiples by ``keep`` stay far inside int64


@dataclass(frozen=True)
class Method(PreLLMPruner):
    """Focus and context. The module's docstring explains the options that are missing here.

    * ``relevance``: "embeddings" of the language model, "clip" (joint image-text space) or "none". The
      default is "embeddings", which kept the most accuracy on ``shapes``
      (docs/measurements/accuracy-of-shapes.md).
    * ``sign``: "auto" is positive for embeddings and negative for CLIP, whose patches point away from what
      they show (found by CDPruner and TRIM).
    * ``layer``: vision layer of the saliency; -1 is the layer that gives the features.
    * ``saliency``: "auto" takes the class token's attention in families that have one, else the received
      attention.
    * ``scale``: cues are scaled by "minmax" or by "rank" (the share of tokens below).
    * ``structure``: divergence of the vision "features" or of the "projected" tokens.
    * ``rho``: 1 is TopK of phi alone, 0 is sampling alone.
    """

    our_reading: ClassVar[bool] = True
    reads_question: ClassVar[bool] = True

    relevance: Literal["embeddings", "clip", "none"] = "embeddings"
    sign: Literal["auto", "positive", "negative"] = "auto"
    pool: Literal["mean", "max"] = "mean"
    saliency: Literal["auto", "cls", "received"] = "auto"
    layer: int = -1
    scale: Literal["minmax", "rank"] = "minmax"
    interplay: Literal["sum_product", "product", "max", "noisy_or"] = "sum_product"
    eta: float = option(1.0, 0, 100)
    rho: float = option(0.5, 0, 1)
    structure: Literal["features", "projected"] = "features"
    window: Literal[3, 5] = 3
    gamma: float = option(1.0, 0, 8)
    eps: float = option(0.05, 1e-4, 10)
    proximity: float = option(1.0, 0, 100)
    path: Literal["hilbert", "serpentine", "raster"] = "hilbert"
    mu: float = option(0.0, 0, 1)

    def taps(self, spec: ModelSpec) -> tuple[str, ...]:
        attention = {"cls": "cls_attention", "received": "received_attention", "auto": saliency(spec)}
        features = ("features",) if self.structure == "features" else ()
        cue = tap(spec, attention[self.saliency], self.layer)
        return cue, *features, *question_taps(self.relevance, spec)

    def reduce(
        self, tokens: Tensor, taps: dict[str, Tensor], keep: Keep, grid: tuple[Keep, Keep]
    ) -> tuple[Tensor, Tensor, Tensor]:
        budget = torch.full((1,), keep, dtype=torch.int64, device=tokens.device)
        in_focus = (budget * 2 * round(self.rho * 10**6) + 10**6) // (2 * 10**6)  # round(rho keep), halves up
        focus = selection.rank(self.subject(tokens, taps)) < in_focus
        divergence = self.scaled(_divergence(taps.get("features", tokens), grid, self.window))
        weight = self.weights(divergence, focus, grid)
        scan = _Scan(weight, _order(self.path, grid, tokens.device), budget - in_focus)
        kept = selection.marked(focus | scan.hit, keep)
        rows = selection.gather(tokens, kept)
        if self.mu > 0:
            rows = _blend(rows, tokens, kept, scan, self.mu)
        return rows, kept, selection.count(kept)

    def subject(self, tokens: Tensor, taps: dict[str, Tensor]) -> Tensor:
        """Return phi ``[B,N]``, which tells how much each token belongs to a subject."""
        s = self.scaled(next(value for name, value in taps.items() if "attention" in name).float())
        if self.relevance == "none":
            return s
        cosine, asked = similarity.question_relevance(tokens, taps, self.sign, self.pool)
        r = self.scaled(cosine)
        phi = {
            "sum_product": lambda: (s + r) / 2 + self.eta * s * r,
            "product": lambda: s * r,
            "max": lambda: torch.maximum(s, r),
            "noisy_or": lambda: s + r - s * r,
        }[self.interplay]()
        return torch.where(asked, phi, s)

    def scaled(self, cue: Tensor) -> Tensor:
        """Scale ``cue [B,N]`` to 0..1 over the image."""
        if self.scale == "rank":
            mine, other = cue[:, :, None], cue[:, None, :]
            below = (other < mine).float() + (other <= mine).float()  # ties get the mean of their ranks
            return below.mean(-1) / 2
        return similarity.minmax(cue)

    def weights(self, divergence: Tensor, focus: Tensor, grid: tuple[Keep, Keep]) -> Tensor:
        """Return the sampling density ``[B,N]`` as integers: 0 in the focus, 1..2^20 elsewhere."""
        density = (divergence + self.eps) ** self.gamma
        if self.proximity > 0:
            near, cells = _window_sum(focus.float()[..., None], grid, 5)
            density = density * (1 + self.proximity * near[..., 0] / cells)
        unit = density / density.amax(1, keepdim=True)
        whole = (unit * 2**_BITS).round().to(torch.int64).clamp(min=1)
        return torch.where(focus, 0, whole)


class _Scan:
    """Systematic sampling: cuts the total ``weight [B,N]`` along ``order [N]`` into equal ``shares [1]``.

    * ``hit [B,N]`` bool: the tokens in the middle of a share.
    * ``share [B,N]``: the share that a hit took.
    * ``run [B,N]``: the share in which a token's own middle lies, -1 for tokens without weight.
    """

    def __init__(self, weight: Tensor, order: Tensor, shares: Tensor) -> None:
        weight = _level(weight, shares)
        after = _sums(order[None, None, :] <= order[None, :, None], weight)  # up to and with each token
        total = weight.sum(-1, keepdim=True).clamp(min=1)
        self.share = (2 * (after - weight) * shares + total) // (2 * total)
        self.hit = (2 * after * shares + total) // (2 * total) > self.share
        self.run = torch.where(weight > 0, (2 * after - weight) * shares // (2 * total), -1)


def _level(weight: Tensor, shares: Tensor) -> Tensor:
    """Cut heavy weights to the largest level at which none exceeds an equal share of the sum that is left."""
    # the sum if all weights were cut to this one
    filled = torch.minimum(weight[:, :, None], weight[:, None, :]).sum(-1)
    heavy = filled < shares * weight
    rest = torch.where(heavy, 0, weight).sum(-1, keepdim=True)
    return torch.minimum(weight, rest // (shares - heavy.sum(-1, keepdim=True)).clamp(min=1))


def _sums(mask: Tensor, weight: Tensor) -> Tensor:
    """Sum the ``weight [B,N]`` that each row of ``mask [B,N,N]`` selects: ``[B,N]`` int64, exact.

    It runs at the speed of a MatMul. Halves of 10 bits are exact in float32 and in NVIDIA's TF32, and so are
    their sums up to N = 16,383.
    """
    halves = torch.stack([weight // 1024, weight % 1024], dim=-1).float()
    high, low = torch.matmul(mask.float(), halves).to(torch.int64).unbind(-1)
    return high * 1024 + low


def _divergence(features: Tensor, grid: tuple[Keep, Keep], window: int) -> Tensor:
    """Return 1 - mean cosine of each patch and its neighbours: ``[B,N,d]`` -> ``[B,N]`` float32."""
    unit = similarity.unit(features)
    around, cells = _window_sum(unit, grid, window)
    itself = (similarity.length(features)[..., 0] > 0).float()
    cosines = (unit * around).sum(-1) - itself
    return 1 - cosines / (cells - 1).clamp(min=1)


def _window_sum(values: Tensor, grid: tuple[Keep, Keep], window: int) -> tuple[Tensor, Tensor]:
    """Sum ``values [B,N,d]`` over the square around each token, cut at the border.

    Also returns the square's size in cells, ``[N]``.
    """
    (rows, columns), (batch, _, width) = grid, values.shape
    down, across = (_near(n, window, values.device) for n in grid)
    lines = torch.matmul(down, values.reshape(batch, rows, columns * width))
    square = torch.matmul(across, lines.reshape(batch, rows, columns, width))
    cells = down.sum(1)[:, None] * across.sum(1)[None, :]
    return square.reshape(values.shape), cells.reshape(-1)


def _near(size: int, window: int, device: torch.device) -> Tensor:
    index = torch.arange(size, device=device)
    return ((index[:, None] - index[None, :]).abs() <= window // 2).float()


def _order(path: str, grid: tuple[Keep, Keep], device: torch.device) -> Tensor:
    """Return each token's time in a scan along ``path``: ``[N]`` distinct int64."""
    rows, columns = grid
    index = torch.arange(rows * columns, device=device)
    y, x = selection.coordinates(index, columns)
    if path == "raster":
        return index
    if path == "serpentine":
        return y * columns + torch.where(y % 2 == 1, columns - 1 - x, x)
    # Hilbert's curve over the square of the next power of two: quadrant by quadrant, large to small
    largest = torch.full((1,), torch.sym_max(rows, columns), dtype=torch.int64, device=device)
    order, flipped = torch.zeros_like(index), 2**_LEVELS - 1
    for step in (2**level for level in reversed(range(_LEVELS))):
        used = largest > step  # false: the grid lies in the first quadrant
        right, lower = x // step % 2, y // step % 2
        order = order + step * step * torch.where(right == 1, 3 - lower, lower)
        x, y = (
            torch.where(right * (1 - lower) == 1, flipped - x, x),
            torch.where(right * (1 - lower) == 1, flipped - y, y),
        )
        swap = used & (lower == 0)
        x, y = torch.where(swap, y, x), torch.where(swap, x, y)
    return order


def _blend(rows: Tensor, tokens: Tensor, kept: Tensor, scan: _Scan, mu: float) -> Tensor:
    """Move context rows by ``mu`` towards the mean of their runs. Focus rows stay."""
    hit, share = scan.hit.gather(1, kept), scan.share.gather(1, kept)
    member = (scan.run[:, None, :] == share[:, :, None]).float()  # [B,R,N]
    mean = torch.matmul(member / member.sum(-1, keepdim=True).clamp(min=1), tokens.float())
    own = rows.float()
    return torch.where(hit[..., None], own + mu * (mean - own), own).to(rows.dtype)

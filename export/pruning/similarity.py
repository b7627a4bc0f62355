"""Cosines between rows, relevance to the question, and scaling of cues.

Functions take and return tensors and follow the rules in ``pruning/pre_llm.py``.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

__all__ = [
    "FAR",
    "closest",
    "cosines",
    "diagonal",
    "excluding",
    "length",
    "minmax",
    "question_relevance",
    "unit",
]

_FINE = 2.0**22
"""Cosines are rounded to multiples of 1 / _FINE. Copies of a token then tie although engines' sums differ by
an ulp."""

FAR = 4.0
"""A number above any cosine distance."""


def length(x: Tensor) -> Tensor:
    """Return the length of each row in float32: ``[B,N,d]`` -> ``[B,N,1]``."""
    return torch.linalg.vector_norm(x.float(), dim=-1, keepdim=True)


def unit(x: Tensor) -> Tensor:
    """Scale rows to length 1 in float32; rows of zeros stay: ``[B,N,d]`` -> ``[B,N,d]``."""
    return x.float() * _shrinking(x)


def _shrinking(x: Tensor) -> Tensor:
    """Return the factor that scales each row to length 1: ``[B,N,d]`` -> ``[B,N,1]`` float32."""
    return 1 / length(x).clamp(min=1e-12)


def cosines(x: Tensor, y: Tensor | None = None) -> Tensor:
    """Return the cosines ``[B,N,M]`` float32 of the rows of ``x [B,N,d]`` and ``y [B,M,d]`` (default ``x``).

    The products are scaled and not the rows, since the rows hold more numbers.
    """
    mine = _shrinking(x)
    others, theirs = (x, mine) if y is None else (y, _shrinking(y))
    products = torch.matmul(x.float(), others.float().transpose(1, 2))
    return (products * mine * theirs.transpose(1, 2) * _FINE).round() / _FINE


def diagonal(matrix: Tensor) -> Tensor:
    """Return the diagonal of each matrix: ``[B,N,N]`` -> ``[B,N]``."""
    batch, size, _ = matrix.shape
    index = torch.arange(size, device=matrix.device)
    return matrix.gather(2, index[None, :, None].expand(batch, size, 1))[..., 0]


def closest(similar: Tensor, among: Tensor) -> tuple[Tensor, Tensor]:
    """Return each token's highest cosine with a token of ``among``, and the first such token: ``[B,N]``.

    ``similar [B,N,N]`` holds the cosines, ``among [B,N]`` is bool. The index is N where ``among`` is empty.
    """
    size = among.shape[1]
    found = similar - excluding(among, FAR)
    best = found.amax(-1)
    index = torch.arange(size, device=among.device).float()
    beyond = 1.0 * size  # float(size) would be the size of the example that is traced
    first = torch.where(found == best[:, :, None], index, beyond).amin(-1)
    return best, torch.where(among.any(1, keepdim=True), first.to(torch.int64), size)


def excluding(among: Tensor, far: float) -> Tensor:
    """Return an additive mask ``[B,1,N]``: 0 where ``among [B,N]``, else ``far``.

    Engines add faster than they select with Where.
    """
    return torch.where(among, 0.0, far)[:, None]


def minmax(cue: Tensor) -> Tensor:
    """Scale ``cue [B,N]`` to 0..1 along N; a constant row becomes 0."""
    low, high = cue.amin(1, keepdim=True), cue.amax(1, keepdim=True)
    return (cue - low) / (high - low + 1e-6)


def question_relevance(
    tokens: Tensor,
    taps: dict[str, Tensor],
    sign: Literal["auto", "positive", "negative"] = "auto",
    pool: Literal["mean", "max"] = "mean",
) -> tuple[Tensor, Tensor]:
    """Return each patch's cosine with the question ``[B,N]`` float32, and ``[B,1]`` bool: there is one.

    ``taps`` holds the taps named by ``taps.question_taps``. The cosines with the rows of the text are pooled
    by their "mean" or "max". Rows of zeros in the text are padding. ``sign`` "negative" negates the cosines;
    "auto" does so in CLIP's joint space only.
    """
    clip = "clip_image" in taps
    patches, text = (taps["clip_image"], taps["clip_text"]) if clip else (tokens, taps["text_embeds"])
    known = text.float().abs().amax(-1) > 0  # [B,W]
    words = known.float().sum(1, keepdim=True)
    if pool == "mean":
        direction = unit(text).sum(1) / words.clamp(min=1)
        cosine = torch.matmul(patches.float(), direction[:, :, None])[..., 0] * _shrinking(patches)[..., 0]
    else:
        each = torch.matmul(patches.float(), unit(text).transpose(1, 2)) * _shrinking(patches)  # [B,N,W]
        cosine = torch.where(known[:, None], each, -2.0).amax(-1)
    negative = sign == "negative" or (sign == "auto" and clip)
    return -cosine if negative else cosine, words > 0

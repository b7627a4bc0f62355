"""Ranking, picking and gathering of tokens.

Functions take and return tensors and follow the rules in ``pruning/pre_llm.py``. ``ahead`` is the one rule of
order: the highest first, of equals the first.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from foveate.export.networks.onnx_ops import loop
from foveate.export.pruning.similarity import FAR, excluding

__all__ = [
    "Keep",
    "ahead",
    "at_most",
    "coordinates",
    "count",
    "first_of",
    "gather",
    "in_order",
    "marked",
    "outliers",
    "packed",
    "pick_farthest",
    "rank",
    "rank_within",
    "row",
]

Keep = int
"""A number of tokens. While a graph is traced it is a ``torch.SymInt``, which torch types as an int."""


def ahead(score: Tensor) -> Tensor:
    """Mark the pairs (i, j) in which entry j comes before entry i: ``[B,N]`` -> ``[B,N,N]`` bool.

    The highest comes first, and of equals the first.
    """
    index = torch.arange(score.shape[1], device=score.device)
    mine, other = score[:, :, None], score[:, None, :]
    return (other > mine) | ((other == mine) & (index < index[:, None]))


def rank(score: Tensor, together: Tensor | None = None) -> Tensor:
    """Return the place of each entry of ``score [B,N]`` in the order of ``ahead``, from 0: ``[B,N]`` float32.

    Only the pairs ``together [B,N,N]`` are compared, if they are given. Places are counted in pairs and not
    sorted, because TensorRT's TopK does not define the order of ties.
    """
    before = ahead(score) if together is None else ahead(score) & together
    return before.float().sum(-1)


def rank_within(score: Tensor, group: Tensor) -> Tensor:
    """Return the place of each entry of ``score [B,N]`` in its ``group [N]``: ``[B,N]`` float32."""
    return rank(score, group == group[:, None])


def marked(mask: Tensor, keep: Keep) -> Tensor:
    """Return the ascending indices ``[B,keep]`` int64 of the ``keep`` true entries of ``mask [B,N]``."""
    size = mask.shape[1]
    index = torch.arange(size, device=mask.device)
    key = torch.where(mask, 2 * size - index, size - index).float()  # distinct: no engine breaks ties
    return key.topk(keep, dim=1).indices


def gather(tokens: Tensor, kept: Tensor) -> Tensor:
    """Return the rows ``kept [B,R]`` of ``tokens [B,N,D]``, bit for bit: ``[B,R,D]``."""
    batch, size, width = tokens.shape
    first = torch.arange(batch, device=kept.device)[:, None] * size
    return F.embedding(kept + first, tokens.reshape(batch * size, width))


def row(matrix: Tensor, index: Tensor) -> Tensor:
    """Return the row ``index [B,1]`` of each ``matrix [B,N,M]``: ``[B,M]``."""
    batch, size, width = matrix.shape
    first = torch.arange(batch, device=index.device) * size
    return F.embedding(index.reshape(batch) + first, matrix.reshape(batch * size, width))


def count(kept: Tensor) -> Tensor:
    """Return ``[B]`` int64 with the number of rows R of ``kept [B,R]``, all of them valid."""
    return torch.ones_like(kept).sum(1)


def at_most(tokens: Tensor, mask: Tensor, keep: Keep) -> tuple[Tensor, Tensor, Tensor]:
    """Return the three outputs of ``reduce`` for a ``mask [B,N]`` of at most ``keep`` tokens.

    Rows behind the last token are 0 and their ``kept`` is -1.
    """
    count = mask.to(torch.int64).sum(1)
    valid = torch.arange(keep, device=mask.device) < count[:, None]
    kept = marked(mask, keep)
    rows = torch.where(valid[..., None], gather(tokens, kept), torch.zeros_like(tokens[:, :1, :1]))
    return rows, torch.where(valid, kept, -1), count


def in_order(tier: Tensor, keep: Keep) -> Tensor:
    """Return the indices ``[B,keep]`` of the entries of highest ``tier [B,M]`` (int64).

    They are in order of the tiers, and of their index within a tier.
    """
    size = tier.shape[1]
    key = tier * size - torch.arange(size, device=tier.device)  # distinct: no engine breaks ties
    return key.float().topk(keep, dim=1).indices


def packed(stays: Tensor) -> tuple[Tensor, Tensor]:
    """Return ``order [1,T]`` int64 and ``count [1]`` int64 for the mask ``stays [1,T]``.

    ``order`` lists the rows that stay, in their order, then the others, in theirs. ``count`` is the number of
    rows that stay. A cumulative sum and one scatter do it, without a sort whose ties an engine would have to
    break.
    """
    index = torch.arange(stays.shape[1], device=stays.device)[None]
    front = stays.to(torch.int64).cumsum(1)
    count = front[:, -1]
    place = torch.where(stays, front - 1, count[:, None] + index - front)
    return torch.zeros_like(place).scatter(1, place, index), count


def coordinates(index: Tensor, columns: Keep) -> tuple[Tensor, Tensor]:
    """Return row and column of the tokens ``index`` in raster order.

    The column is a difference because the ONNX export has no remainder of run-time numbers.
    """
    row = index // columns
    return row, index - row * columns


def first_of(score: Tensor) -> Tensor:
    """Return the index of the highest entry, the first of equals: ``[B,N]`` -> ``[B,1]``.

    It does not use ArgMax, whose choice among equals some engines leave open.
    """
    size = score.shape[1]
    index = torch.arange(size, device=score.device)
    best = score == score.amax(1, keepdim=True)
    return torch.where(best, index, size - 1).amin(1, keepdim=True)


def outliers(x: Tensor) -> Tensor:
    """Count the entries of each row of ``x [B,N]`` above Q3 + 1.5 (Q3 - Q1): ``[B,1]`` int64.

    The quartiles Q1 and Q3 are interpolated.
    """
    falling = x.topk(x.shape[1], dim=1).values

    def quartile(upper: float) -> Tensor:
        """Return the value that a share ``upper`` of the entries exceeds, by linear interpolation."""
        place = upper * (x.shape[1] - 1)
        low, high = falling[:, math.ceil(place)][:, None], falling[:, math.floor(place)][:, None]
        return low + (math.ceil(place) - place) * (high - low)

    limit = quartile(0.25) + 1.5 * (quartile(0.25) - quartile(0.75))
    return (x > limit).to(torch.int64).sum(1, keepdim=True)


def pick_farthest(distance: Tensor, taken: Tensor, picks: Tensor) -> Tensor:
    """Pick tokens greedily by max-min distance: ``[B,N]`` bool, the picked tokens without the taken ones.

    Each pick is the token farthest from all tokens that are taken or picked, the first of equals. ``distance
    [B,N,N]``; ``taken [B,N]`` bool, at least one per row; ``picks [B,1]`` int64, the number of picks, at most
    the tokens left.
    """
    index = torch.arange(taken.shape[1], device=taken.device)
    first = torch.where(taken, -FAR, (distance + excluding(taken, FAR)).amin(-1))
    most = picks.amax((0, 1))

    def more(done: Tensor, gap: Tensor) -> Tensor:
        return done < most

    def turn(done: Tensor, gap: Tensor) -> tuple[Tensor, ...]:
        farthest = first_of(torch.minimum(first, gap))
        hit = (index == farthest) & (done < picks)
        return done + 1, torch.where(hit, -FAR, torch.minimum(gap, row(distance, farthest)))

    done = torch.zeros((), dtype=torch.int64, device=first.device)
    return loop(more, turn, (done, torch.full_like(first, FAR)))[1] == -FAR

"""Functions that methods share: cosines, relevance to the question, ranking, gathering and loops of picks.

They take and return tensors and follow the rules in ``pruning/method.py``. A loop becomes one ONNX ``Loop``
whose number of iterations is known at run time only.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._higher_order_ops.while_loop import while_loop

from foveate.export.pruning import method
from foveate.export.spec import ModelSpec

__all__ = [
    "FAR",
    "at_most",
    "closest",
    "coordinates",
    "cosines",
    "diagonal",
    "first_of",
    "in_order",
    "loop",
    "minmax",
    "mix",
    "outliers",
    "owners",
    "pick_farthest",
    "place_within",
    "question_relevance",
    "question_taps",
    "row",
    "saliency",
    "unit",
]

_FINE = 2.0**22
"""Cosines are rounded to multiples of 1 / _FINE. Copies of a token then tie although engines' sums differ by
an ulp."""

FAR = 4.0
"""A number above any cosine distance."""

_LIGHT = 1e-30  # weights up to this count as 0


def unit(x: Tensor) -> Tensor:
    """Scale rows to length 1 in float32; rows of zeros stay: ``[B,N,d]`` -> ``[B,N,d]``."""
    return x.float() * _shrinking(x)


def _shrinking(x: Tensor) -> Tensor:
    """Return the factor that scales each row to length 1: ``[B,N,d]`` -> ``[B,N,1]`` float32."""
    return 1 / torch.linalg.vector_norm(x.float(), dim=-1, keepdim=True).clamp(min=1e-12)


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


def minmax(cue: Tensor) -> Tensor:
    """Scale ``cue [B,N]`` to 0..1 along N; a constant row becomes 0."""
    low, high = cue.amin(1, keepdim=True), cue.amax(1, keepdim=True)
    return (cue - low) / (high - low + 1e-6)


def outliers(x: Tensor) -> Tensor:
    """Count the entries of each row of ``x [B,N]`` above Q3 + 1.5 (Q3 - Q1): ``[B,1]`` int64.

    The quartiles Q1 and Q3 are interpolated.
    """
    falling = x.topk(x.shape[1], dim=1).values

    def quartile(upper: float) -> Tensor:
        """Return the value that a share ``upper`` of the entries exceeds, interpolated linearly between
        entries."""
        place = upper * (x.shape[1] - 1)
        low, high = falling[:, math.ceil(place)][:, None], falling[:, math.floor(place)][:, None]
        return low + (math.ceil(place) - place) * (high - low)

    limit = quartile(0.25) + 1.5 * (quartile(0.25) - quartile(0.75))
    return (x > limit).to(torch.int64).sum(1, keepdim=True)


def saliency(spec: ModelSpec) -> str:
    """Return the tap that tells which patches the vision encoder attends to.

    It is the class token's attention, or the attention that each patch receives in families without a class
    token.
    """
    received = "cls_attention" not in spec.taps and "received_attention" in spec.taps
    return "received_attention" if received else "cls_attention"


def question_taps(relevance: str, spec: ModelSpec) -> tuple[str, ...]:
    """Return the taps that ``question_relevance`` reads.

    ``relevance`` is "clip" (CLIP's joint space of images and text), "embeddings" (the words as the language
    model embeds them), "auto" ("clip" in families that offer it, else "embeddings") or "none".
    """
    if relevance == "auto":
        relevance = "clip" if "clip_image" in spec.taps else "embeddings"
    return {"clip": ("clip_image", "clip_text"), "embeddings": ("text_embeds",), "none": ()}[relevance]


def question_relevance(tokens: Tensor, taps: dict[str, Tensor], sign: str) -> tuple[Tensor, Tensor]:
    """Return each patch's mean cosine with the question ``[B,N]``, and ``[B,1]`` bool: there is a question.

    ``taps`` holds the taps named by ``question_taps``. Rows of zeros in the text are padding. ``sign``
    "negative" negates the cosines; "auto" does so in CLIP's joint space only.
    """
    clip = "clip_image" in taps
    patches, text = (taps["clip_image"], taps["clip_text"]) if clip else (tokens, taps["text_embeds"])
    words = (text.float().abs().amax(-1) > 0).float().sum(1, keepdim=True)
    direction = unit(text).sum(1) / words.clamp(min=1)
    cosine = torch.matmul(patches.float(), direction[:, :, None])[..., 0] * _shrinking(patches)[..., 0]
    negative = sign == "negative" or (sign == "auto" and clip)
    return -cosine if negative else cosine, words > 0


def coordinates(index: Tensor, columns: method.Keep) -> tuple[Tensor, Tensor]:
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


def place_within(score: Tensor, group: Tensor) -> Tensor:
    """Return the place of each entry of ``score [B,N]`` in its ``group [N]``: ``[B,N]`` float32.

    The highest has place 0. The first of equal entries is ahead.
    """
    index = torch.arange(score.shape[1], device=score.device)
    mine, other = score[:, :, None], score[:, None, :]
    ahead = (other > mine) | ((other == mine) & (index < index[:, None]))
    return (ahead & (group == group[:, None])).float().sum(-1)


def row(matrix: Tensor, index: Tensor) -> Tensor:
    """Return the row ``index [B,1]`` of each ``matrix [B,N,M]``: ``[B,M]``."""
    batch, size, width = matrix.shape
    first = torch.arange(batch, device=index.device) * size
    return F.embedding(index.reshape(batch) + first, matrix.reshape(batch * size, width))


def at_most(tokens: Tensor, mask: Tensor, keep: method.Keep) -> tuple[Tensor, Tensor, Tensor]:
    """Return the three outputs of ``reduce`` for a ``mask [B,N]`` of at most ``keep`` tokens.

    Rows behind the last token are 0 and their ``kept`` is -1.
    """
    count = mask.to(torch.int64).sum(1)
    valid = torch.arange(keep, device=mask.device) < count[:, None]
    kept = method.marked(mask, keep)
    rows = torch.where(valid[..., None], method.gather(tokens, kept), torch.zeros_like(tokens[:, :1, :1]))
    return rows, torch.where(valid, kept, -1), count


def owners(kept: Tensor, into: Tensor) -> Tensor:
    """Return, for each token, the row of ``kept [B,R]`` that it is merged into: ``[B,N]`` int64, -1 for none.

    ``into [B,N]`` names the kept token that each token goes into, -1 for none.
    """
    row = torch.arange(kept.shape[1], device=kept.device)[:, None]
    return torch.where((kept[:, :, None] == into[:, None, :]) & (into >= 0)[:, None, :], row, -1).amax(1)


def in_order(tier: Tensor, keep: method.Keep) -> Tensor:
    """Return the indices ``[B,keep]`` of the entries of highest ``tier [B,M]`` (int64), tier by tier, then by
    index."""
    size = tier.shape[1]
    key = tier * size - torch.arange(size, device=tier.device)  # distinct, so no engine has to break ties
    return key.float().topk(keep, dim=1).indices


def closest(similar: Tensor, among: Tensor) -> tuple[Tensor, Tensor]:
    """Return each token's highest cosine with a token of ``among``, and the first such token: ``[B,N]``.

    ``similar [B,N,N]`` holds the cosines, ``among [B,N]`` is bool. The index is N where ``among`` is empty.
    """
    size = among.shape[1]
    found = similar - _unless(among, FAR)
    best = found.amax(-1)
    index = torch.arange(size, device=among.device).float()
    beyond = 1.0 * size  # float(size) would be the size of the example that is traced
    first = torch.where(found == best[:, :, None], index, beyond).amin(-1)
    return best, torch.where(among.any(1, keepdim=True), first.to(torch.int64), size)


def _unless(among: Tensor, far: float) -> Tensor:
    """Return an additive mask ``[B,1,N]``: 0 where ``among [B,N]``, else ``far``.

    Engines add faster than they select with Where.
    """
    return torch.where(among, 0.0, far)[:, None]


def mix(rows: Tensor, own: Tensor, tokens: Tensor, share: Tensor) -> Tensor:
    """Merge ``tokens [B,N,D]`` into ``rows [B,R,D]`` by weighted means: ``[B,R,D]``.

    ``own [B,R]`` are the weights of the rows, ``share [B,R,N]`` those of the tokens in each row. A row that
    no token is merged into stays bit for bit.
    """
    added = share.sum(-1, keepdim=True)
    mixed = added > _LIGHT
    own, added = torch.where(mixed, own[:, :, None], 1.0), torch.where(mixed, added, 0.0)
    total = own * rows.float() + torch.matmul(torch.where(mixed, share, 0.0), tokens.float())
    return (total / (own + added)).to(rows.dtype)


def loop(
    more: Callable[..., Tensor], turn: Callable[..., tuple[Tensor, ...]], state: tuple[Tensor, ...]
) -> tuple[Tensor, ...]:
    """Run ``while more(*state): state = turn(*state)``.

    ``more`` returns a 0-d bool tensor. The shapes of the state are fixed.
    TensorRT-RTX 1.7 fails on a state of floats whose first value is computed. Start from constants, and let
    ``turn`` combine them with computed tensors.
    """
    if torch.compiler.is_exporting():
        return while_loop(more, turn, state)
    while more(*state):
        state = turn(*state)
    return state


def pick_farthest(distance: Tensor, taken: Tensor, picks: Tensor) -> Tensor:
    """Pick tokens greedily by max-min distance: ``[B,N]`` bool, the picked tokens without the taken ones.

    Each pick is the token farthest from all tokens that are taken or picked, the first of equals. ``distance
    [B,N,N]``; ``taken [B,N]`` bool, at least one per row; ``picks [B,1]`` int64, the number of picks, at most
    the tokens left.
    """
    index = torch.arange(taken.shape[1], device=taken.device)
    first = torch.where(taken, -FAR, (distance + _unless(taken, FAR)).amin(-1))
    most = picks.amax((0, 1))

    def more(done: Tensor, gap: Tensor) -> Tensor:
        return done < most

    def turn(done: Tensor, gap: Tensor) -> tuple[Tensor, ...]:
        farthest = first_of(torch.minimum(first, gap))
        hit = (index == farthest) & (done < picks)
        return done + 1, torch.where(hit, -FAR, torch.minimum(gap, row(distance, farthest)))

    done = torch.zeros((), dtype=torch.int64, device=first.device)
    return loop(more, turn, (done, torch.full_like(first, FAR)))[1] == -FAR

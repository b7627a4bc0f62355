"""What methods that compare tokens with one another share: cosines, relevance to a question, loops of picks.

Tensors in, tensors out, under the rules of ``methods/base.py``; a loop becomes one ONNX ``Loop`` whose number of
turns is found at run time.
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
"""Cosines are rounded to this fraction, so that copies of a token tie although engines' sums end an ulp apart."""

FAR = 4.0
"""Above any cosine distance."""

_LIGHT = 1e-30  # a weight that is none


def unit(x: Tensor) -> Tensor:
    """Rows of length 1 in float32, rows of zeros as they are: ``[B,N,d]`` -> ``[B,N,d]``."""
    return x.float() * _shrinking(x)


def _shrinking(x: Tensor) -> Tensor:
    """What makes a row as long as 1: ``[B,N,d]`` -> ``[B,N,1]`` float32."""
    return 1 / torch.linalg.vector_norm(x.float(), dim=-1, keepdim=True).clamp(min=1e-12)


def cosines(x: Tensor, y: Tensor | None = None) -> Tensor:
    """Cosine of every row of ``x [B,N,d]`` and every row of ``y [B,M,d]``, by default ``x``: ``[B,N,M]`` float32.

    The products are made shorter, not the rows, of which there is more.
    """
    mine = _shrinking(x)
    others, theirs = (x, mine) if y is None else (y, _shrinking(y))
    products = torch.matmul(x.float(), others.float().transpose(1, 2))
    return (products * mine * theirs.transpose(1, 2) * _FINE).round() / _FINE


def diagonal(matrix: Tensor) -> Tensor:
    """``[B,N,N]`` -> ``[B,N]``."""
    batch, size, _ = matrix.shape
    index = torch.arange(size, device=matrix.device)
    return matrix.gather(2, index[None, :, None].expand(batch, size, 1))[..., 0]


def minmax(cue: Tensor) -> Tensor:
    """``[B,N]`` to 0..1 over the picture; a constant becomes 0."""
    low, high = cue.amin(1, keepdim=True), cue.amax(1, keepdim=True)
    return (cue - low) / (high - low + 1e-6)


def outliers(x: Tensor) -> Tensor:
    """How many entries of each row of ``x [B,N]`` are above Q3 + 1.5 (Q3 - Q1), quartiles interpolated: ``[B,1]`` int64."""
    falling = x.topk(x.shape[1], dim=1).values

    def quartile(upper: float) -> Tensor:
        """The value that a share ``upper`` of the entries is above, linear between two entries."""
        place = upper * (x.shape[1] - 1)
        low, high = falling[:, math.ceil(place)][:, None], falling[:, math.floor(place)][:, None]
        return low + (math.ceil(place) - place) * (high - low)

    limit = quartile(0.25) + 1.5 * (quartile(0.25) - quartile(0.75))
    return (x > limit).to(torch.int64).sum(1, keepdim=True)


def saliency(spec: ModelSpec) -> str:
    """The tap that says where the encoder looks: the class token's attention, or, in a family without one, the
    attention that each patch receives."""
    received = "cls_attention" not in spec.taps and "received_attention" in spec.taps
    return "received_attention" if received else "cls_attention"


def question_taps(relevance: str, spec: ModelSpec) -> tuple[str, ...]:
    """What relevance to the question reads. ``relevance``: "clip" (joint image-text space), "embeddings" (the words as
    the language model embeds them), "auto" ("clip" where the family has it, else "embeddings") or "none"."""
    if relevance == "auto":
        relevance = "clip" if "clip_image" in spec.taps else "embeddings"
    return {"clip": ("clip_image", "clip_text"), "embeddings": ("text_embeds",), "none": ()}[relevance]


def question_relevance(tokens: Tensor, taps: dict[str, Tensor], sign: str) -> tuple[Tensor, Tensor]:
    """Cosine ``[B,N]`` of each patch and the question, mean over its rows; ``[B,1]`` whether there is a question.

    ``taps`` holds those of ``question_taps``. Rows of zeros are no text. ``sign`` "auto" is negative in CLIP's joint
    space and positive for embeddings.
    """
    clip = "clip_image" in taps
    patches, text = (taps["clip_image"], taps["clip_text"]) if clip else (tokens, taps["text_embeds"])
    words = (text.float().abs().amax(-1) > 0).float().sum(1, keepdim=True)
    direction = unit(text).sum(1) / words.clamp(min=1)
    cosine = torch.matmul(patches.float(), direction[:, :, None])[..., 0] * _shrinking(patches)[..., 0]
    negative = sign == "negative" or (sign == "auto" and clip)
    return -cosine if negative else cosine, words > 0


def coordinates(index: Tensor, columns: method.Keep) -> tuple[Tensor, Tensor]:
    """Row and column of the tokens ``index`` in raster order. ONNX export has no remainder of run-time numbers."""
    row = index // columns
    return row, index - row * columns


def first_of(score: Tensor) -> Tensor:
    """Index of the highest entry, the first of equals (ArgMax promises none on some engines): ``[B,N]`` -> ``[B,1]``."""
    size = score.shape[1]
    index = torch.arange(size, device=score.device)
    best = score == score.amax(1, keepdim=True)
    return torch.where(best, index, size - 1).amin(1, keepdim=True)


def place_within(score: Tensor, group: Tensor) -> Tensor:
    """Place of each entry of ``score [B,N]`` in its ``group [N]``, 0 for the highest, equal ones by first index."""
    index = torch.arange(score.shape[1], device=score.device)
    mine, other = score[:, :, None], score[:, None, :]
    ahead = (other > mine) | ((other == mine) & (index < index[:, None]))
    return (ahead & (group == group[:, None])).float().sum(-1)


def row(matrix: Tensor, index: Tensor) -> Tensor:
    """Row ``index [B,1]`` of ``matrix [B,N,M]``: ``[B,M]``."""
    batch, size, width = matrix.shape
    first = torch.arange(batch, device=index.device) * size
    return F.embedding(index.reshape(batch) + first, matrix.reshape(batch * size, width))


def at_most(tokens: Tensor, mask: Tensor, keep: method.Keep) -> tuple[Tensor, Tensor, Tensor]:
    """What ``reduce`` returns for a ``mask [B,N]`` of at most ``keep`` tokens; rows behind them are 0, ``kept`` -1."""
    count = mask.to(torch.int64).sum(1)
    valid = torch.arange(keep, device=mask.device) < count[:, None]
    kept = method.marked(mask, keep)
    rows = torch.where(valid[..., None], method.gather(tokens, kept), torch.zeros_like(tokens[:, :1, :1]))
    return rows, torch.where(valid, kept, -1), count


def owners(kept: Tensor, into: Tensor) -> Tensor:
    """The row of ``kept [B,R]`` that holds the token ``into [B,N]``, into which each token goes (-1: none): ``[B,N]``."""
    row = torch.arange(kept.shape[1], device=kept.device)[:, None]
    return torch.where((kept[:, :, None] == into[:, None, :]) & (into >= 0)[:, None, :], row, -1).amax(1)


def in_order(tier: Tensor, keep: method.Keep) -> Tensor:
    """The ``keep`` entries of highest ``tier [B,M]`` (int64), equal ones by index: indices ``[B,keep]``, tier by tier."""
    size = tier.shape[1]
    key = tier * size - torch.arange(size, device=tier.device)  # distinct, so no engine has to break ties
    return key.float().topk(keep, dim=1).indices


def closest(similar: Tensor, among: Tensor) -> tuple[Tensor, Tensor]:
    """The highest of the cosines ``similar [B,N,N]`` to one of ``among [B,N]`` (bool), and the first token that has it, N where
    there is none: ``[B,N]``."""
    size = among.shape[1]
    found = similar - _unless(among, FAR)
    best = found.amax(-1)
    index = torch.arange(size, device=among.device).float()
    beyond = 1.0 * size  # float(size) would be the size of the example that is traced
    first = torch.where(found == best[:, :, None], index, beyond).amin(-1)
    return best, torch.where(among.any(1, keepdim=True), first.to(torch.int64), size)


def _unless(among: Tensor, far: float) -> Tensor:
    """0 in the columns of ``among [B,N]``, else ``far``, ``[B,1,N]``: to be added, which engines do faster than they choose."""
    return torch.where(among, 0.0, far)[:, None]


def mix(rows: Tensor, own: Tensor, tokens: Tensor, share: Tensor) -> Tensor:
    """Weighted means: ``rows [B,R,D]`` with weights ``own [B,R]`` and ``tokens [B,N,D]`` with weights ``share [B,R,N]``.

    A row into which nothing goes stays bit for bit.
    """
    added = share.sum(-1, keepdim=True)
    mixed = added > _LIGHT
    own, added = torch.where(mixed, own[:, :, None], 1.0), torch.where(mixed, added, 0.0)
    total = own * rows.float() + torch.matmul(torch.where(mixed, share, 0.0), tokens.float())
    return (total / (own + added)).to(rows.dtype)


def loop(
    more: Callable[..., Tensor], turn: Callable[..., tuple[Tensor, ...]], state: tuple[Tensor, ...]
) -> tuple[Tensor, ...]:
    """``while more(*state): state = turn(*state)``. ``more`` gives a bool tensor without dimensions; shapes stay.

    TensorRT-RTX 1.7 fails on a state of floats that starts as something computed: start from constants, and let the
    turn join them with what was computed before.
    """
    if torch.compiler.is_exporting():
        return while_loop(more, turn, state)
    while more(*state):
        state = turn(*state)
    return state


def pick_farthest(distance: Tensor, taken: Tensor, picks: Tensor) -> Tensor:
    """Greedy max-min: ``picks`` times the token farthest from all that are taken or picked, the first of equals.

    ``distance [B,N,N]``; ``taken [B,N]`` bool, at least one; ``picks [B,1]`` int64, at most what is left. Returns the
    picked tokens ``[B,N]`` bool, without those taken.
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

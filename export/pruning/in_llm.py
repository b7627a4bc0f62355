"""Pruning inside the language model: where the decoder is cut, and the graph that shortens the prompt there.

A method of this kind is an ``Inside``: it names its cuts and marks, at each, the visual rows that stay. What it may look
at is ``Rows``: the prompt at the cut, and queries and keys of the layer that scores, without or with rotary embedding.
The graph ``pruner.<i>`` moves the rows that stay to the front; segment ``llm.<i+1>`` is given these alone.

The rules of ``methods/base.py`` hold. No shape depends on data: as many rows come out as went in. Selection is per
picture: ``picture`` tells the rows of one from those of another. Only the prompt's own chunk is looked at: keys of
earlier turns, in the cache, take no part in a softmax.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveate.engines.errors import UserError
from foveate.export.networks.decoder import Linear, RMSNorm, rope_of
from foveate.export.networks.onnx_ops import rotary_embedding
from foveate.export.pruning import method as base
from foveate.export.spec import DecoderSpec

__all__ = [
    "Cut",
    "Inside",
    "PrunerInside",
    "Rows",
    "Scoring",
    "best_of_picture",
    "causal",
    "in_proportion",
    "packed",
    "share_of",
]

_HEADS = 4
"""Heads of which attention is computed at once: ONNX Runtime holds ``[heads,T,T]``."""

Extra = Literal["position_ids", "patch", "rows", "columns", "entered", "inputs_embeds"]


@dataclass(frozen=True)
class Cut:
    """The decoder is cut before ``layer``; ``scored`` is the layer whose weights score its own input."""

    layer: int
    scored: int


@dataclass(frozen=True)
class Inside(base.Method):
    """A method that prunes inside the language model, at one or several cuts."""

    where: ClassVar[Literal["before", "inside"]] = "inside"

    carries: ClassVar[tuple[str, ...]] = ()
    """Numbers per row that a cut hands to the next one (``Rows.carried``)."""

    def cuts(self, spec: DecoderSpec) -> tuple[Cut, ...]:
        """In ascending order of ``layer``. Raises UserError (code 2) where the decoder has no such layer."""
        raise NotImplementedError

    def reads(self, stage: int) -> tuple[Extra, ...]:
        """What the graph of cut ``stage`` takes besides ``hidden``, ``scored``, ``picture`` and ``keep``; an input that a
        graph does not use is refused by TensorRT. ``inputs_embeds`` is there at the first cut alone."""
        return ()

    def stays(self, stage: int, rows: Rows) -> Tensor:
        """``[1,T]`` bool: the visual rows that stay at cut ``stage``; what it says of text rows is not heeded."""
        raise NotImplementedError

    def shorten(self, stage: int, rows: Rows) -> tuple[Tensor, Tensor, Tensor, tuple[Tensor, ...]]:
        """``tokens [1,T,D]``: ``hidden`` with the rows that stay in front; ``kept [1,T]`` int64, the row each was (-1: a mixture, or
        behind the end); ``count [1]`` int64; what is carried, ``[1,T]`` each, in the new order."""
        order, count = packed(~rows.visual | self.stays(stage, rows))
        index = torch.arange(order.shape[1], device=order.device)
        kept = torch.where(index < count[:, None], order, -1)
        return (
            base.gather(rows.hidden, order),
            kept,
            count,
            tuple(v.gather(1, order) for v in self.carry(rows)),
        )

    def carry(self, rows: Rows) -> tuple[Tensor, ...]:
        """The values of ``carries`` before the rows move: those that came unless a method makes new ones."""
        return tuple(rows.carried[name] for name in self.carries)

    def at(self, spec: DecoderSpec, layer: int, scored: int) -> Cut:
        """A cut, refused where the decoder has no such layers."""
        if not (0 <= scored <= layer and 0 < layer < spec.num_layers):
            raise UserError(
                f"{self.name} cannot prune before layer {layer} | the decoder has layers 0..{spec.num_layers - 1}, "
                "of which the first sees everything | set other layers with --set",
                code=2,
            )
        return Cut(layer, scored)


class Scoring(nn.Module):
    """Norms and projections of one decoder layer, without its MLP; its weights are that layer's, of which the graph holds
    those that the method reads."""

    def __init__(self, spec: DecoderSpec) -> None:
        super().__init__()
        self.spec = spec
        self.heads, self.kv_heads, self.head_dim = spec.num_heads, spec.num_kv_heads, spec.head_dim
        self.input_layernorm = RMSNorm(spec.hidden_size, spec.rms_norm_eps)
        self.self_attn = nn.Module()
        self.self_attn.q_proj = Linear(spec.hidden_size, self.heads * self.head_dim, spec.attention_bias)
        self.self_attn.k_proj = Linear(spec.hidden_size, self.kv_heads * self.head_dim, spec.attention_bias)
        self.self_attn.v_proj = Linear(spec.hidden_size, self.kv_heads * self.head_dim, spec.attention_bias)
        self.self_attn.o_proj = Linear(self.heads * self.head_dim, spec.hidden_size)
        self.post_attention_layernorm = RMSNorm(spec.hidden_size, spec.rms_norm_eps)

    def queries(self, normed: Tensor) -> Tensor:
        """``[1,T,D]`` -> ``[1,H,T,Dh]``, not rotated."""
        return self._split(self.self_attn.q_proj(normed), self.heads)

    def keys(self, normed: Tensor) -> Tensor:
        """``[1,T,D]`` -> ``[1,Hkv,T,Dh]``, not rotated."""
        return self._split(self.self_attn.k_proj(normed), self.kv_heads)

    def values(self, normed: Tensor) -> Tensor:
        """``[1,T,D]`` -> ``[1,Hkv,T,Dh]``."""
        return self._split(self.self_attn.v_proj(normed), self.kv_heads)

    def _split(self, y: Tensor, heads: int) -> Tensor:
        return y.view(y.shape[0], y.shape[1], heads, self.head_dim).transpose(1, 2)


@dataclass(frozen=True)
class Rows:
    """The prompt at a cut: ``T`` rows, text and visual; the last one is the last token of the prompt.

    ``hidden``, ``scored`` ``[1,T,D]``: at the cut and entering the scoring layer. ``picture [1,T]`` int64: number of the
    row's picture, -1 for text. ``keep [1,T]`` int64: the number that this cut is given for the row's picture (pictures may
    have budgets of their own), 0 for text. Where a method reads them:
    ``position_ids [1,T]``, ``patch [1,T]`` (the row's place in its grid, -1 for text, mixtures and newlines), ``rows``,
    ``columns [1,T]`` (that grid; 1 where there is none), ``entered [1,T]`` (how many rows its picture had before the first cut), ``inputs_embeds [1,T,D]``. ``norm`` is the
    decoder's final one.
    """

    hidden: Tensor
    scored: Tensor
    picture: Tensor
    keep: Tensor
    layer: Scoring
    norm: RMSNorm
    rope: tuple[Tensor, Tensor] | None = None
    position_ids: Tensor | None = None
    patch: Tensor | None = None
    rows: Tensor | None = None
    columns: Tensor | None = None
    entered: Tensor | None = None
    inputs_embeds: Tensor | None = None
    carried: dict[str, Tensor] | None = None

    @property
    def visual(self) -> Tensor:
        """``[1,T]`` bool."""
        return self.picture >= 0

    @property
    def same(self) -> Tensor:
        """``[1,T,T]`` bool: of one picture, or both text."""
        return self.picture[:, None, :] == self.picture[:, :, None]

    def normed(self) -> Tensor:
        """``scored`` after the scoring layer's norm."""
        return self.layer.input_layernorm(self.scored)

    def last_query(self, rotated: bool) -> Tensor:
        """Of the prompt's last token: ``[1,H,1,Dh]``."""
        query = self.layer.queries(self.normed()[:, -1:])
        if not rotated:
            return query
        # The last token is text, whose axes are one: it has the highest but for a video's time, which comes first. Of a slice of
        # rows TensorRT would not know the length.
        last = self.position_ids[-1:].amax(-1, keepdim=True)
        return self._rotated(query, last.expand(*self.position_ids.shape[:-1], 1))

    def queries(self, rotated: bool) -> Tensor:
        """Of every row: ``[1,H,T,Dh]``."""
        queries = self.layer.queries(self.normed())
        return self._rotated(queries, self.position_ids) if rotated else queries

    def keys(self, rotated: bool) -> Tensor:
        """Of every row, repeated for the query heads that share them: ``[1,H,T,Dh]``."""
        keys = self.layer.keys(self.normed())
        if rotated:
            keys = self._rotated(keys, self.position_ids)
        return keys.repeat_interleave(self.layer.heads // self.layer.kv_heads, dim=1)

    def _rotated(self, x: Tensor, position_ids: Tensor) -> Tensor:
        return rotary_embedding(x, *rope_of(self.layer.spec, *self.rope, position_ids))

    def attended(self) -> Tensor:
        """What enters the MLP of the scoring layer: ``[1,T,D]``."""
        layer, length = self.layer, self.scored.shape[1]
        values = layer.values(self.normed()).repeat_interleave(layer.heads // layer.kv_heads, dim=1)
        sees = causal(length, self.scored)
        parts = (x.split(_HEADS, 1) for x in (self.queries(rotated=True), self.keys(rotated=True), values))
        mixed = torch.cat(
            [F.scaled_dot_product_attention(*part, attn_mask=sees) for part in zip(*parts, strict=True)], 1
        )
        mixed = mixed.transpose(1, 2).reshape(1, length, -1)
        return layer.post_attention_layernorm(self.scored + layer.self_attn.o_proj(mixed))

    def last_scores(self, rotated: bool) -> Tensor:
        """q k / sqrt(d) of the last token's query and every key: ``[1,H,T]`` float32."""
        scores = torch.matmul(self.last_query(rotated), self.keys(rotated).transpose(-1, -2))
        return scores[:, :, 0].float() * self.layer.head_dim**-0.5

    def last_attention(self, rotated: bool) -> Tensor:
        """Attention of the last token on every row, mean over heads: ``[1,T]`` float32."""
        return self.last_scores(rotated).softmax(-1).mean(1)

    def picture_attention(self, rotated: bool) -> Tensor:
        """The same with a softmax over the rows of the same picture alone: ``[1,T]`` float32."""
        scores = self.last_scores(rotated)
        scores = torch.where(self.visual[:, None], scores, -1e30)
        weight = (scores - scores.amax(-1, keepdim=True)).exp()
        same = (self.picture[:, None, :] == self.picture[:, :, None]).float()  # [1,T,T]
        return (weight / torch.matmul(weight, same).clamp(min=1e-30)).mean(1)


def best_of_picture(score: Tensor, rows: Rows, most: Tensor) -> Tensor:
    """``[1,T]`` bool: of each picture the ``most`` visual rows of highest ``score [1,T]``, the first of equals.

    ``most`` int64 ``[1,T]``, the same for all rows of a picture, e.g. ``rows.keep``.
    """
    index = torch.arange(score.shape[1], device=score.device)
    mine, other = score[:, :, None], score[:, None, :]
    ahead = (other > mine) | ((other == mine) & (index < index[:, None]))
    same = rows.picture[:, None, :] == rows.picture[:, :, None]
    place = (ahead & same).float().sum(-1)
    return rows.visual & (place < most)


def share_of(rows: Rows) -> Tensor:
    """How many visual rows the picture of each row has now: ``[1,T]`` int64, exact below 2^24."""
    return (rows.picture[:, None, :] == rows.picture[:, :, None]).float().sum(-1).to(torch.int64)


def causal(length: int, like: Tensor) -> Tensor:
    """``[T,T]`` bool: each row sees those up to itself. On the device of ``like``."""
    index = torch.arange(length, device=like.device)
    return index <= index[:, None]


def packed(stays: Tensor) -> tuple[Tensor, Tensor]:
    """``order [1,T]`` int64: the rows that stay in their order, then the others in theirs; ``count [1]`` int64 of those
    that stay. By counting and one scatter: no sort, no ties."""
    index = torch.arange(stays.shape[1], device=stays.device)[None]
    front = stays.to(torch.int64).cumsum(1)
    count = front[:, -1]
    place = torch.where(stays, front - 1, count[:, None] + index - front)
    return torch.zeros_like(place).scatter(1, place, index), count


def in_proportion(shares: tuple[float, ...], spec: DecoderSpec) -> tuple[int, ...]:
    """Ascending layers at ``shares`` of the decoder's depth, each behind the one before, the first 1 at least."""
    layers: list[int] = []
    for share in shares:
        layers.append(max(round(share * spec.num_layers), layers[-1] + 1 if layers else 1))
    return tuple(layers)


class PrunerInside(nn.Module):
    """The graph ``pruner.<stage>``: the inputs that ``names`` lists, in that order, to what ``Inside.shorten`` gives."""

    def __init__(self, method: Inside, stage: int, names: tuple[str, ...], spec: DecoderSpec) -> None:
        super().__init__()
        self.method, self.stage, self.names, self.spec = method, stage, names, spec
        self.layer, self.norm = Scoring(spec), RMSNorm(spec.hidden_size, spec.rms_norm_eps)
        if "position_ids" in names:
            shape = spec.max_positions, spec.head_dim // 2
            self.register_buffer("rope_cos", torch.empty(shape), persistent=False)
            self.register_buffer("rope_sin", torch.empty(shape), persistent=False)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        given = dict(zip(self.names, inputs, strict=True))
        given.setdefault("scored", given["hidden"])
        carried = {name: given.pop(f"carried.{name}", None) for name in self.method.carries}
        rope = (self.rope_cos, self.rope_sin) if "position_ids" in given else None
        rows = Rows(**given, layer=self.layer, norm=self.norm, rope=rope, carried=carried)
        hidden, kept, count, carry = self.method.shorten(self.stage, rows)
        return hidden, kept, count, *carry

"""In-LLM pruners: the layers at which they cut the decoder, and the graph that shortens the prompt at a cut.

An in-LLM pruner is an ``Inside``. It names its cuts and marks the visual rows that stay at each of them. It
reads ``Rows``: the prompt at the cut, and the scoring layer's queries and keys, with or without rotary
embedding. The graph ``pruner.<i>`` moves the rows that stay to the front. Segment ``llm.<i+1>`` receives only
these rows.

The rules in ``pruning/method.py`` apply here too. No shape depends on data: a pruner returns as many rows as
it gets. Rows are selected for each image on its own; ``image`` holds the image's number for every row.
Methods see only the rows of the current chunk: keys of earlier turns, which are in the kv cache, take no part
in a softmax.
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
    "best_of_image",
    "causal",
    "in_proportion",
    "packed",
    "share_of",
]

_HEADS = 4
"""Number of heads whose attention is computed together. ONNX Runtime holds their scores as
``[heads,T,T]``."""

Extra = Literal["position_ids", "patch", "rows", "columns", "entered", "inputs_embeds"]


@dataclass(frozen=True)
class Cut:
    """A cut of the decoder before ``layer``. The weights of layer ``scored`` score that layer's own input."""

    layer: int
    scored: int


@dataclass(frozen=True)
class Inside(base.Method):
    """Base class of in-LLM pruners, which prune at one or several cuts of the decoder."""

    where: ClassVar[Literal["before", "inside"]] = "inside"

    carries: ClassVar[tuple[str, ...]] = ()
    """Names of per-row values that a cut passes on to the next one (``Rows.carried``)."""

    def cuts(self, spec: DecoderSpec) -> tuple[Cut, ...]:
        """Return the cuts in ascending order of ``layer``.

        Raises UserError (code 2) when the decoder has no such layer.
        """
        raise NotImplementedError

    def reads(self, stage: int) -> tuple[Extra, ...]:
        """Name the inputs of ``stage``'s graph besides ``hidden``, ``scored``, ``image`` and ``keep``.

        Name only what the method uses: TensorRT refuses a graph with an unused input. ``inputs_embeds``
        exists only at the first cut.
        """
        return ()

    def stays(self, stage: int, rows: Rows) -> Tensor:
        """Mark the visual rows that stay at cut ``stage``: ``[1,T]`` bool; text rows are ignored."""
        raise NotImplementedError

    def shorten(self, stage: int, rows: Rows) -> tuple[Tensor, Tensor, Tensor, tuple[Tensor, ...]]:
        """Move the rows that stay to the front.

        Returns ``tokens [1,T,D]``, which is ``hidden`` in the new order; ``kept [1,T]`` int64, the old index
        of each row (-1 for a mixture and behind the last row); ``count [1]`` int64, the number of rows that
        stay; and the carried values in the new order, ``[1,T]`` each.
        """
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
        """Return the values of ``carries``, ``[1,T]`` each, in the order before the rows move.

        The default passes on the values of the cut before. A method may compute new ones.
        """
        return tuple(rows.carried[name] for name in self.carries)

    def at(self, spec: DecoderSpec, layer: int, scored: int) -> Cut:
        """Make a cut. Raises UserError (code 2) when the decoder has no such layers."""
        if not (0 <= scored <= layer and 0 < layer < spec.num_layers):
            raise UserError(
                f"{self.name} cannot prune before layer {layer} "
                f"| the decoder has layers 0..{spec.num_layers - 1}, and layer 0 always sees every token "
                "| set other layers with --set",
                code=2,
            )
        return Cut(layer, scored)


class Scoring(nn.Module):
    """Norms and attention projections of one decoder layer, without its MLP.

    It shares the weights of that layer. The exported graph holds only the weights that the method uses.
    """

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
        """Return the queries of ``normed [1,T,D]``, not rotated: ``[1,H,T,Dh]``."""
        return self._split(self.self_attn.q_proj(normed), self.heads)

    def keys(self, normed: Tensor) -> Tensor:
        """Return the keys of ``normed [1,T,D]``, not rotated: ``[1,Hkv,T,Dh]``."""
        return self._split(self.self_attn.k_proj(normed), self.kv_heads)

    def values(self, normed: Tensor) -> Tensor:
        """Return the values of ``normed [1,T,D]``: ``[1,Hkv,T,Dh]``."""
        return self._split(self.self_attn.v_proj(normed), self.kv_heads)

    def _split(self, y: Tensor, heads: int) -> Tensor:
        return y.view(y.shape[0], y.shape[1], heads, self.head_dim).transpose(1, 2)


@dataclass(frozen=True)
class Rows:
    """The prompt at a cut: ``T`` rows, text and visual. The last row is the last token of the prompt.

    Always present:

    * ``hidden [1,T,D]``: hidden states at the cut.
    * ``scored [1,T,D]``: hidden states that enter the scoring layer.
    * ``image [1,T]`` int64: number of the row's image, -1 for text.
    * ``keep [1,T]`` int64: this cut's budget for the row's image, 0 for text. Images may have different
      budgets.
    * ``layer``: the scoring layer. ``norm``: the final norm of the decoder.

    Present only when the method names them in ``reads``, else None:

    * ``position_ids [1,T]``, and with them ``rope``, the tables of the rotary embedding.
    * ``patch [1,T]``: place of the row in its image's grid, -1 for text, mixtures and newlines.
    * ``rows``, ``columns`` ``[1,T]``: size of that grid, 1 for rows without a grid.
    * ``entered [1,T]``: number of rows that the row's image had before the first cut.
    * ``inputs_embeds [1,T,D]``: embeddings of the prompt.

    ``carried``: the values that the cut before passed on, by name.
    """

    hidden: Tensor
    scored: Tensor
    image: Tensor
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
        """Mask of the visual rows: ``[1,T]`` bool."""
        return self.image >= 0

    @property
    def same(self) -> Tensor:
        """Mask of the pairs of rows that belong to one image or are both text: ``[1,T,T]`` bool."""
        return self.image[:, None, :] == self.image[:, :, None]

    def normed(self) -> Tensor:
        """Return ``scored`` after the input norm of the scoring layer: ``[1,T,D]``."""
        return self.layer.input_layernorm(self.scored)

    def last_query(self, rotated: bool) -> Tensor:
        """Return the query of the prompt's last token: ``[1,H,1,Dh]``."""
        query = self.layer.queries(self.normed()[:, -1:])
        if not rotated:
            return query
        # M-RoPE: the last token is text, so its three axes are equal. Its position is the maximum over all
        # rows; a video's time may be higher, but time is the first axis, which [-1:] leaves out. Slicing the
        # last row instead would give TensorRT a length that it cannot infer.
        last = self.position_ids[-1:].amax(-1, keepdim=True)
        return self._rotated(query, last.expand(*self.position_ids.shape[:-1], 1))

    def queries(self, rotated: bool) -> Tensor:
        """Return the query of every row: ``[1,H,T,Dh]``."""
        queries = self.layer.queries(self.normed())
        return self._rotated(queries, self.position_ids) if rotated else queries

    def keys(self, rotated: bool) -> Tensor:
        """Return the key of every row, repeated for the query heads that share it: ``[1,H,T,Dh]``."""
        keys = self.layer.keys(self.normed())
        if rotated:
            keys = self._rotated(keys, self.position_ids)
        return keys.repeat_interleave(self.layer.heads // self.layer.kv_heads, dim=1)

    def _rotated(self, x: Tensor, position_ids: Tensor) -> Tensor:
        return rotary_embedding(x, *rope_of(self.layer.spec, *self.rope, position_ids))

    def attended(self) -> Tensor:
        """Compute the scoring layer up to the input of its MLP: ``[1,T,D]``."""
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
        """Return q k / sqrt(d) for the last token's query and every key: ``[1,H,T]`` float32."""
        scores = torch.matmul(self.last_query(rotated), self.keys(rotated).transpose(-1, -2))
        return scores[:, :, 0].float() * self.layer.head_dim**-0.5

    def last_attention(self, rotated: bool) -> Tensor:
        """Return the attention of the last token to every row, mean over heads: ``[1,T]`` float32."""
        return self.last_scores(rotated).softmax(-1).mean(1)

    def image_attention(self, rotated: bool) -> Tensor:
        """Return ``last_attention`` with the softmax taken over the rows of each image alone: ``[1,T]``
        float32."""
        scores = self.last_scores(rotated)
        scores = torch.where(self.visual[:, None], scores, -1e30)
        weight = (scores - scores.amax(-1, keepdim=True)).exp()
        same = (self.image[:, None, :] == self.image[:, :, None]).float()  # [1,T,T]
        return (weight / torch.matmul(weight, same).clamp(min=1e-30)).mean(1)


def best_of_image(score: Tensor, rows: Rows, most: Tensor) -> Tensor:
    """Mark the ``most`` visual rows of each image with the highest ``score [1,T]``: ``[1,T]`` bool.

    The first of equal scores wins. ``most [1,T]`` int64 is the same for all rows of an image, e.g.
    ``rows.keep``.
    """
    index = torch.arange(score.shape[1], device=score.device)
    mine, other = score[:, :, None], score[:, None, :]
    ahead = (other > mine) | ((other == mine) & (index < index[:, None]))
    same = rows.image[:, None, :] == rows.image[:, :, None]
    place = (ahead & same).float().sum(-1)
    return rows.visual & (place < most)


def share_of(rows: Rows) -> Tensor:
    """Count the rows that each row's image has now: ``[1,T]`` int64, exact below 2^24."""
    return (rows.image[:, None, :] == rows.image[:, :, None]).float().sum(-1).to(torch.int64)


def causal(length: int, like: Tensor) -> Tensor:
    """Return the causal mask ``[T,T]`` bool on ``like``'s device: a row sees itself and those before it."""
    index = torch.arange(length, device=like.device)
    return index <= index[:, None]


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


def in_proportion(shares: tuple[float, ...], spec: DecoderSpec) -> tuple[int, ...]:
    """Return the layers at ``shares`` of the decoder's depth, strictly ascending and at least 1."""
    layers: list[int] = []
    for share in shares:
        layers.append(max(round(share * spec.num_layers), layers[-1] + 1 if layers else 1))
    return tuple(layers)


class PrunerInside(nn.Module):
    """The graph ``pruner.<stage>``: takes the inputs in ``names``, in that order, and returns
    ``Inside.shorten``'s outputs."""

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

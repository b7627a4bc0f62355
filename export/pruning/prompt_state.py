"""The prompt where an in-LLM pruner reads it: hidden states, facts about each row, and the scoring layer.

``ScoringLayer`` has the norms and attention projections of one decoder layer. ``PromptState`` computes with
it what methods score rows by: queries, keys and attention, with or without rotary embedding.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveate.export.networks.decoder import Linear, RMSNorm, rope_of
from foveate.export.networks.onnx_ops import rotary_embedding
from foveate.export.pruning import selection
from foveate.export.spec import DecoderSpec

__all__ = ["Extra", "PromptState", "ScoringLayer"]

_HEADS = 4
"""Number of heads whose attention is computed together. ONNX Runtime holds their scores as
``[heads,T,T]``."""

Extra = Literal["position_ids", "patch", "rows", "columns", "entered", "inputs_embeds"]
"""Fields of ``PromptState`` that exist only if the method asks for them."""


class _Projections(nn.Module):
    def __init__(self, spec: DecoderSpec) -> None:
        super().__init__()
        width, rows, shared = (
            spec.hidden_size,
            spec.num_heads * spec.head_dim,
            spec.num_kv_heads * spec.head_dim,
        )
        self.q_proj = Linear(width, rows, spec.attention_bias)
        self.k_proj = Linear(width, shared, spec.attention_bias)
        self.v_proj = Linear(width, shared, spec.attention_bias)
        self.o_proj = Linear(rows, width)


class ScoringLayer(nn.Module):
    """Norms and attention projections of one decoder layer, without its MLP.

    It shares the weights of that layer. The exported graph holds only the weights that the method uses.
    """

    def __init__(self, spec: DecoderSpec) -> None:
        super().__init__()
        self.spec = spec
        self.heads, self.kv_heads, self.head_dim = spec.num_heads, spec.num_kv_heads, spec.head_dim
        self.input_layernorm = RMSNorm(spec.hidden_size, spec.rms_norm_eps)
        self.self_attn = _Projections(spec)
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
class PromptState:
    """The prompt at a stage: ``T`` rows, text and visual. The last row is the last token of the prompt.

    Always present:

    * ``hidden [1,T,D]``: hidden states before the layer where the prompt is pruned.
    * ``scored [1,T,D]``: hidden states that enter the scoring layer.
    * ``image [1,T]`` int64: number of the row's image, -1 for text.
    * ``keep [1,T]`` int64: this stage's budget for the row's image, 0 for text. Images may have different
      budgets.
    * ``layer``: the scoring layer. ``norm``: the final norm of the decoder.
    * ``carried``: the values that the stage before passed on, by name; none at the first stage.

    The properties below ``extra`` exist only if the method names them in ``extra_inputs``; reading another
    one is a KeyError. With ``position_ids`` come ``rope``, the tables of the rotary embedding.
    """

    hidden: Tensor
    scored: Tensor
    image: Tensor
    keep: Tensor
    layer: ScoringLayer
    norm: RMSNorm
    carried: dict[str, Tensor] = field(default_factory=dict)
    rope: tuple[Tensor, Tensor] | None = None
    extra: dict[str, Tensor] = field(default_factory=dict)

    @property
    def position_ids(self) -> Tensor:
        """Position ids: ``[1,T]``, or ``[3,1,T]`` with M-RoPE."""
        return self.extra["position_ids"]

    @property
    def patch(self) -> Tensor:
        """Place of the row in its image's grid: ``[1,T]`` int64, -1 for text, mixtures and newlines."""
        return self.extra["patch"]

    @property
    def rows(self) -> Tensor:
        """Rows of the image's grid: ``[1,T]`` int64, 1 for rows of the prompt without a grid."""
        return self.extra["rows"]

    @property
    def columns(self) -> Tensor:
        """Columns of the image's grid: ``[1,T]`` int64, 1 for rows of the prompt without a grid."""
        return self.extra["columns"]

    @property
    def entered(self) -> Tensor:
        """Number of rows that the row's image had before the first stage: ``[1,T]`` int64."""
        return self.extra["entered"]

    @property
    def inputs_embeds(self) -> Tensor:
        """Embeddings of the prompt: ``[1,T,D]``, at the first stage only."""
        return self.extra["inputs_embeds"]

    @property
    def visual(self) -> Tensor:
        """Mask of the visual rows: ``[1,T]`` bool."""
        return self.image >= 0

    @property
    def same(self) -> Tensor:
        """Mask of the pairs of rows that belong to one image or are both text: ``[1,T,T]`` bool."""
        return self.image[:, None, :] == self.image[:, :, None]

    def rows_of_image(self) -> Tensor:
        """Count the rows that each row's image has now: ``[1,T]`` int64, exact below 2^24."""
        return self.same.float().sum(-1).to(torch.int64)

    def best_of_image(self, score: Tensor, number: Tensor) -> Tensor:
        """Mark the ``number`` visual rows of each image with the highest ``score [1,T]``: ``[1,T]`` bool.

        The first of equal scores wins. ``number [1,T]`` int64 is the same for all rows of an image, e.g.
        ``keep``.
        """
        return self.visual & (selection.rank(score, self.same) < number)

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

    def rope_of(self, position_ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the tables cos and sin for ``position_ids``, and the rows to read in them."""
        assert self.rope is not None, "the method does not name position_ids in extra_inputs"
        return rope_of(self.layer.spec, *self.rope, position_ids)

    def _rotated(self, x: Tensor, position_ids: Tensor) -> Tensor:
        return rotary_embedding(x, *self.rope_of(position_ids))

    def attended(self) -> Tensor:
        """Compute the scoring layer up to the input of its MLP: ``[1,T,D]``."""
        layer, length = self.layer, self.scored.shape[1]
        values = layer.values(self.normed()).repeat_interleave(layer.heads // layer.kv_heads, dim=1)
        sees = _causal(length, self.scored)
        parts = (x.split(_HEADS, 1) for x in (self.queries(rotated=True), self.keys(rotated=True), values))
        mixed = torch.cat(
            [F.scaled_dot_product_attention(q, k, v, attn_mask=sees) for q, k, v in zip(*parts, strict=True)],
            1,
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
        """Return ``last_attention`` with the softmax over the rows of each image alone: ``[1,T]`` float32."""
        scores = self.last_scores(rotated)
        scores = torch.where(self.visual[:, None], scores, -1e30)
        weight = (scores - scores.amax(-1, keepdim=True)).exp()
        return (weight / torch.matmul(weight, self.same.float()).clamp(min=1e-30)).mean(1)


def _causal(length: int, like: Tensor) -> Tensor:
    """Return the causal mask ``[T,T]`` bool on ``like``'s device: a row sees itself and those before it."""
    index = torch.arange(length, device=like.device)
    return index <= index[:, None]

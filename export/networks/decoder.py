"""The language model: a LLaMA-style decoder that reads embeddings and writes its kv cache in place.

Module paths follow Hugging Face's (``layers.3.self_attn.q_proj.weight``). Weight matrices are stored ``[in,
out]``, as ONNX's MatMul reads them, so the exported graph needs no Transpose.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveate.export.networks.onnx_ops import rms_norm, rotary_embedding, tensor_scatter
from foveate.export.spec import DecoderSpec

__all__ = ["Decoder", "DecoderLayer", "Linear", "RMSNorm", "Segment", "rope_of", "rope_tables"]


class Linear(nn.Module):
    """A linear layer, ``x @ weight + bias`` with ``weight [in, out]``."""

    def __init__(self, inputs: int, outputs: int, bias: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(inputs, outputs), requires_grad=False)
        self.bias = nn.Parameter(torch.empty(outputs), requires_grad=False) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """Map ``x [...,in]`` to ``[...,out]``."""
        y = x @ self.weight
        return y if self.bias is None else y + self.bias


class RMSNorm(nn.Module):
    """RMS norm over the last axis (Zhang and Sennrich 2019)."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size), requires_grad=False)
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the rows of ``x [...,size]``."""
        return rms_norm(x, self.weight, self.eps)


def rope_tables(spec: DecoderSpec) -> tuple[Tensor, Tensor]:
    """Return cos and sin of every position, ``[max_positions, head_dim / 2]`` float32.

    Source: Su et al. 2021 (arXiv 2104.09864), Eq. 34.
    """
    exponents = torch.arange(0, spec.head_dim, 2, dtype=torch.float32, device="cpu") / spec.head_dim
    positions = torch.arange(spec.max_positions, dtype=torch.float32, device="cpu")
    angles = positions[:, None] / spec.rope_theta**exponents
    return angles.cos(), angles.sin()


def rope_of(
    spec: DecoderSpec, cos: Tensor, sin: Tensor, position_ids: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the arguments of ``rotary_embedding`` besides the rows: the tables and ``position_ids [B,T]``.

    With M-RoPE (Qwen2-VL, arXiv 2409.12191, section 2.1) ``position_ids [3,1,T]`` are time, height and width,
    and each section of frequencies uses one of them. The returned tables then have one row for each of the T
    positions.
    """
    if spec.rope_sections is None:
        return cos, sin, position_ids
    sections = spec.rope_sections
    ends = tuple(itertools.accumulate(sections))

    def rows(table: Tensor) -> Tensor:
        parts = [
            table[position_ids[axis, 0]][:, end - size : end]
            for axis, (end, size) in enumerate(zip(ends, sections, strict=True))
        ]
        return torch.cat(parts, dim=1)

    index = torch.arange(position_ids.shape[-1], device=position_ids.device)[None]
    return rows(cos), rows(sin), index


class Attention(nn.Module):
    def __init__(self, spec: DecoderSpec) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = spec.num_heads, spec.num_kv_heads, spec.head_dim
        query, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        self.q_proj = Linear(spec.hidden_size, query, spec.attention_bias)
        self.k_proj = Linear(spec.hidden_size, kv, spec.attention_bias)
        self.v_proj = Linear(spec.hidden_size, kv, spec.attention_bias)
        self.o_proj = Linear(query, spec.hidden_size)

    def forward(
        self,
        x: Tensor,
        rope: tuple[Tensor, Tensor, Tensor],
        write_index: Tensor,
        mask: Tensor,
        past: tuple[Tensor, Tensor],
    ) -> tuple[Tensor, Tensor, Tensor]:
        batch, length, _ = x.shape

        def split(y: Tensor, heads: int) -> Tensor:  # [B,T,H*D] -> [B,H,T,D]
            return y.view(batch, length, heads, self.head_dim).transpose(1, 2)

        query = rotary_embedding(split(self.q_proj(x), self.heads), *rope)
        key = rotary_embedding(split(self.k_proj(x), self.kv_heads), *rope)
        keys = tensor_scatter(past[0], key, write_index)
        values = tensor_scatter(past[1], split(self.v_proj(x), self.kv_heads), write_index)
        mixed = F.scaled_dot_product_attention(
            query, keys, values, attn_mask=mask, enable_gqa=self.heads != self.kv_heads
        )
        return self.o_proj(mixed.transpose(1, 2).reshape(batch, length, -1)), keys, values


class MLP(nn.Module):
    def __init__(self, spec: DecoderSpec) -> None:
        super().__init__()
        self.gate_proj = Linear(spec.hidden_size, spec.intermediate_size)
        self.up_proj = Linear(spec.hidden_size, spec.intermediate_size)
        self.down_proj = Linear(spec.intermediate_size, spec.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class DecoderLayer(nn.Module):
    """A layer: attention and MLP, each behind a norm and added to its input."""

    def __init__(self, spec: DecoderSpec) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(spec.hidden_size, spec.rms_norm_eps)
        self.self_attn = Attention(spec)
        self.post_attention_layernorm = RMSNorm(spec.hidden_size, spec.rms_norm_eps)
        self.mlp = MLP(spec)

    def forward(
        self,
        x: Tensor,
        rope: tuple[Tensor, Tensor, Tensor],
        write_index: Tensor,
        mask: Tensor,
        past: tuple[Tensor, Tensor],
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Map x [B,T,D] to the same shape. Also return the keys and values of the kv cache."""
        attended, keys, values = self.self_attn(self.input_layernorm(x), rope, write_index, mask, past)
        x = x + attended
        return x + self.mlp(self.post_attention_layernorm(x)), keys, values


class Decoder(nn.Module):
    """The decoder. ``forward`` is the graph ``llm``, which serves both prefill and decode."""

    rope_cos: Tensor
    rope_sin: Tensor

    def __init__(self, spec: DecoderSpec) -> None:
        super().__init__()
        self.spec = spec
        self.layers = nn.ModuleList(DecoderLayer(spec) for _ in range(spec.num_layers))
        self.norm = RMSNorm(spec.hidden_size, spec.rms_norm_eps)
        self.lm_head = Linear(spec.hidden_size, spec.vocab_size)
        shape = spec.max_positions, spec.head_dim // 2
        self.register_buffer("rope_cos", torch.empty(shape), persistent=False)
        self.register_buffer("rope_sin", torch.empty(shape), persistent=False)

    def forward(
        self, inputs_embeds: Tensor, position_ids: Tensor, write_index: Tensor, last: Tensor, *past: Tensor
    ) -> tuple[Tensor, ...]:
        """Return logits [B,1,V] of row ``last``, then the kv caches with the new rows written in place.

        inputs_embeds [B,T,D]; position_ids [B,T] (M-RoPE: [3,B,T]); write_index [B]; last [B]; past: key and
        value of each layer, [B,Hkv,S,Dh].
        """
        hidden, _, present = self.run(self.layers, inputs_embeds, position_ids, write_index, past)
        return self.logits(hidden, last), *present

    def run(
        self,
        layers: Iterable[nn.Module],
        hidden: Tensor,
        position_ids: Tensor,
        write_index: Tensor,
        past: Sequence[Tensor],
    ) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """Return ``hidden`` after ``layers``, the input of each layer, and the kv caches."""
        rope = rope_of(self.spec, self.rope_cos, self.rope_sin, position_ids)
        mask = self.causal_mask(hidden.shape[1], past[0].shape[2], write_index)
        entering, present = [], []
        for index, layer in enumerate(layers):
            entering.append(hidden)
            pair = past[2 * index], past[2 * index + 1]
            hidden, keys, values = layer(hidden, rope, write_index, mask, pair)
            present += [keys, values]
        return hidden, entering, present

    @staticmethod
    def causal_mask(length: int, cache: int, write_index: Tensor) -> Tensor:
        """Return the mask [B,1,T,S] bool: a query sees the keys up to its own cache row.

        Later rows are unwritten.
        """
        keys = torch.arange(cache, device=write_index.device)
        queries = write_index[:, None] + torch.arange(length, device=write_index.device)  # [B,T]
        return (keys <= queries[..., None])[:, None]

    def logits(self, hidden: Tensor, last: Tensor) -> Tensor:
        """Return the logits [1,1,V] of row ``last [1]`` of ``hidden [1,T,D]``."""
        return self.lm_head(self.norm(hidden.index_select(1, last)))  # B is 1


class Segment(nn.Module):
    """The graph ``llm.<i>``: layers ``first`` to ``end`` (exclusive) of a decoder that is cut.

    Inputs: hidden [B,T,D], position_ids [B,T], write_index [B], in the last segment last [B], and past as in
    ``Decoder``. Outputs: hidden [B,T,D] after the layers, or logits [B,1,V] in the last segment; the input of
    layer ``scored`` [B,T,D] if a pruner reads it; the kv caches.
    """

    def __init__(self, decoder: Decoder, first: int, end: int, scored: int | None = None) -> None:
        super().__init__()
        self.decoder, self.first, self.end, self.scored = decoder, first, end, scored

    def forward(
        self, hidden: Tensor, position_ids: Tensor, write_index: Tensor, *rest: Tensor
    ) -> tuple[Tensor, ...]:
        """Return the outputs that the class names; ``rest`` are ``last`` and ``past``."""
        final = self.end == self.decoder.spec.num_layers
        past = rest[1:] if final else rest
        layers = self.decoder.layers[self.first : self.end]
        hidden, entering, present = self.decoder.run(layers, hidden, position_ids, write_index, past)
        if final:
            return self.decoder.logits(hidden, rest[0]), *present
        return (hidden, *(() if self.scored is None else (entering[self.scored - self.first],)), *present)

"""Operators that ONNX has and torch lacks: torch functions that export to one standard ONNX node each.

``TRANSLATIONS`` goes to ``torch.onnx.export(custom_translation_table=...)``. The torch functions are written
from the operators' definitions, since they are the reference for ONNX Runtime's results.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import onnxscript
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._higher_order_ops.while_loop import while_loop

__all__ = ["OPSET", "TRANSLATIONS", "loop", "put", "rms_norm", "rotary_embedding", "tensor_scatter"]

OPSET = 24
_op = onnxscript.values.Opset("", OPSET)


def loop(
    more: Callable[..., Tensor], turn: Callable[..., tuple[Tensor, ...]], state: tuple[Tensor, ...]
) -> tuple[Tensor, ...]:
    """Run ``while more(*state): state = turn(*state)``, which becomes one ONNX ``Loop``.

    ``more`` returns a 0-d bool tensor. The shapes of the state are fixed; the number of turns is known at run
    time only. TensorRT-RTX 1.7 fails on a state of floats whose first value is computed. Start from
    constants, and let ``turn`` combine them with computed tensors.
    """
    if torch.compiler.is_exporting():
        return while_loop(more, turn, state)
    while more(*state):
        state = turn(*state)
    return state


@torch.library.custom_op("foveate::rms_norm", mutates_args=())
def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """X / sqrt(mean(x^2) + eps) * weight over the last axis; statistics in float32 (RMSNormalization-23)."""
    return (F.rms_norm(x.float(), (x.shape[-1],), eps=eps) * weight.float()).to(x.dtype)


@rms_norm.register_fake
def _(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return torch.empty_like(x)


@torch.library.custom_op("foveate::rotary_embedding", mutates_args=())
def rotary_embedding(x: Tensor, cos: Tensor, sin: Tensor, position_ids: Tensor) -> Tensor:
    """Rotate ``x [B,H,T,D]`` by rows of ``cos``, ``sin [P,D/2]`` (RotaryEmbedding-23).

    Halves of a row are pairs, as in LLaMA.
    """
    c, s = cos[position_ids][:, None], sin[position_ids][:, None]  # [B,1,T,D/2]
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * c - second * s, second * c + first * s], dim=-1)


@rotary_embedding.register_fake
def _(x: Tensor, cos: Tensor, sin: Tensor, position_ids: Tensor) -> Tensor:
    return torch.empty_like(x)


@torch.library.custom_op("foveate::put", mutates_args=())
def put(x: Tensor, index: Tensor, rows: Tensor) -> Tensor:
    """Write ``rows [R,N]`` into ``x [B,K,N]`` at the distinct ``index [R,2]`` int64 (ScatterND-18)."""
    return x.index_put(tuple(index.unbind(1)), rows)


@put.register_fake
def _(x: Tensor, index: Tensor, rows: Tensor) -> Tensor:
    return torch.empty_like(x)


@torch.library.custom_op("foveate::tensor_scatter", mutates_args=())
def tensor_scatter(past: Tensor, update: Tensor, write_index: Tensor) -> Tensor:
    """Write ``update [B,H,T,D]`` into ``past [B,H,S,D]`` from ``write_index [B]`` on (TensorScatter-24)."""
    present = past.clone()
    for row, start in enumerate(write_index.tolist()):
        present[row, :, start : start + update.shape[2]] = update[row]
    return present


@tensor_scatter.register_fake
def _(past: Tensor, update: Tensor, write_index: Tensor) -> Tensor:
    return torch.empty_like(past)


TRANSLATIONS: dict[Callable[..., Any], Callable[..., Any]] = {
    torch.ops.foveate.put.default: lambda x, index, rows: _op.ScatterND(x, index, rows),
    torch.ops.foveate.rms_norm.default: lambda x, weight, eps: _op.RMSNormalization(
        x, weight, axis=-1, epsilon=eps
    ),
    torch.ops.foveate.rotary_embedding.default: lambda x, cos, sin, position_ids: _op.RotaryEmbedding(
        x, cos, sin, position_ids
    ),
    torch.ops.foveate.tensor_scatter.default: lambda past, update, write_index: _op.TensorScatter(
        past, update, write_index, axis=2, mode="linear"
    ),
}

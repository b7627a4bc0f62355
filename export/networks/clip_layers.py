"""Layers of CLIP, which its vision encoder and its text encoder share.

They follow CLIP in Hugging Face transformers. Weight matrices are stored ``[in, out]`` (``decoder.Linear``).
Every layer uses fused attention.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveate.engines.errors import unknown
from foveate.export.networks.decoder import Linear

__all__ = ["ACTIVATIONS", "Layer", "activation_of"]

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_new": lambda x: F.gelu(x, approximate="tanh"),
    "gelu_pytorch_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "relu": F.relu,
    "silu": F.silu,
}
"""Activation functions by their names in Hugging Face's configs."""


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj = Linear(width, width, bias=True)
        self.k_proj = Linear(width, width, bias=True)
        self.v_proj = Linear(width, width, bias=True)
        self.out_proj = Linear(width, width, bias=True)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Map x [B,T,W] to the mixed rows [B,T,W].

        Also returns queries and keys [B,H,T,W/H], with bias and unscaled.
        """
        batch, length, width = x.shape

        def split(y: Tensor) -> Tensor:
            return y.view(batch, length, self.heads, width // self.heads).transpose(1, 2)

        query, key, value = split(self.q_proj(x)), split(self.k_proj(x)), split(self.v_proj(x))
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        return self.out_proj(mixed.transpose(1, 2).reshape(batch, length, width)), query, key


class MLP(nn.Module):
    def __init__(self, width: int, inner: int, activation: str) -> None:
        super().__init__()
        self.fc1 = Linear(width, inner, bias=True)
        self.fc2 = Linear(inner, width, bias=True)
        self.activation = activation_of(activation)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.activation(self.fc1(x)))


class Layer(nn.Module):
    """Attention and MLP, each behind a norm and beside a residual connection."""

    def __init__(self, width: int, inner: int, heads: int, activation: str, eps: float) -> None:
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(width, eps)
        self.self_attn = Attention(width, heads)
        self.layer_norm2 = nn.LayerNorm(width, eps)
        self.mlp = MLP(width, inner, activation)

    def forward(
        self, x: Tensor, mask: Tensor | None = None, merge: Callable[[Tensor, Tensor], Tensor] | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the rows, queries and keys of the layer.

        ``mask`` as in ``scaled_dot_product_attention``. ``merge`` gets the rows after the attention and their
        keys, and returns fewer rows.
        """
        mixed, query, key = self.self_attn(self.layer_norm1(x), mask)
        x = x + mixed
        if merge is not None:
            x = merge(x, key)
        return x + self.mlp(self.layer_norm2(x)), query, key


def activation_of(name: str) -> Callable[[Tensor], Tensor]:
    """Return the activation function of that name. Raises UserError for an unknown one."""
    if name not in ACTIVATIONS:
        raise unknown("activation", name, ACTIVATIONS)
    return ACTIVATIONS[name]

"""CLIP's text encoder, whose points lie in the joint image-text space."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveate.export.networks.clip_layers import Layer
from foveate.export.networks.decoder import Linear

__all__ = ["TextEncoder", "TextSpec"]


@dataclass(frozen=True)
class TextSpec:
    """Sizes of CLIP's text encoder. ``eos_id`` 2 marks an old config, in which the highest id ends a text."""

    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    vocab_size: int
    context_length: int
    activation: str
    layer_norm_eps: float
    joint_size: int
    eos_id: int


class TextEmbeddings(nn.Module):
    def __init__(self, spec: TextSpec) -> None:
        super().__init__()
        shape = spec.vocab_size, spec.hidden_size
        self.token_embedding = nn.Parameter(torch.empty(shape), requires_grad=False)
        self.position_embedding = nn.Parameter(
            torch.empty(spec.context_length, spec.hidden_size), requires_grad=False
        )

    def forward(self, input_ids: Tensor) -> Tensor:
        return F.embedding(input_ids, self.token_embedding) + self.position_embedding


class TextEncoder(nn.Module):
    """The graph ``text_encoder``, which maps every text to one point of the joint space."""

    def __init__(self, spec: TextSpec) -> None:
        super().__init__()
        self.spec = spec
        self.embeddings = TextEmbeddings(spec)
        self.layers = nn.ModuleList(
            Layer(
                spec.hidden_size,
                spec.intermediate_size,
                spec.num_heads,
                spec.activation,
                spec.layer_norm_eps,
            )
            for _ in range(spec.num_layers)
        )
        self.final_layer_norm = nn.LayerNorm(spec.hidden_size, spec.layer_norm_eps)
        self.text_projection = Linear(spec.hidden_size, spec.joint_size)

    @property
    def context_length(self) -> int:
        """Number of token ids of a text, padding included."""
        return self.spec.context_length

    def forward(self, input_ids: Tensor) -> Tensor:
        """Map input_ids [S,C] int64, each row with an end token, to clip_text [1,S,J], not normalised."""
        order = torch.arange(self.context_length, device=input_ids.device)
        mask = order[None, :] <= order[:, None]  # [C,C]
        hidden = self.embeddings(input_ids)
        for layer in self.layers:
            hidden, _, _ = layer(hidden, mask)
        ends = (self._end(input_ids, order)[:, None] == order)[..., None]  # [S,C,1]
        pooled = torch.where(ends, hidden, 0.0).sum(1)
        return self.text_projection(self.final_layer_norm(pooled))[None]

    def _end(self, input_ids: Tensor, order: Tensor) -> Tensor:
        """Return the place of the first end token: [S]. A minimum over places avoids an ArgMax with ties."""
        last = input_ids.amax(1, keepdim=True) if self.spec.eos_id == 2 else self.spec.eos_id
        return torch.where(input_ids == last, order, self.context_length).amin(1)

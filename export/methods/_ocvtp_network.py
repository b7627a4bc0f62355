"""The slot-attention network of OC-VTP, in which slots compete for the visual tokens.

Modules have the names of the published code (github.com/GarryLarry010131/OC-VTP), so the names of a state
dict match ours. Matrices are stored ``[in, out]`` here (``decoder.Linear``) and ``[out, in]`` there. Sizes
follow from the vision encoder's width D: projection D -> 2D -> D/2, slots of width D/2, feed-forward 2D. For
CLIP ViT-L (1024) these are the published sizes, 7,616,512 parameters. Everything is computed in float32,
whatever the dtype of the weights, because small differences decide which token a slot attends to most.

Slot attention follows Locatello et al. 2020 (arXiv 2006.15055). The gradient takes the bi-level path of Jia
et al. 2023 (arXiv 2210.08990): through the last iteration, and from there straight to the slots' initial
values.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveate.export.networks import decoder

__all__ = ["SlotPruner"]

TURNS = 3
_EPSILON = 1e-5  # added to a slot's sum of attention; also the epsilon of every LayerNorm
_DROPOUT = 0.01  # in the slots' feed-forward, while training


class Linear(decoder.Linear):
    def forward(self, x: Tensor) -> Tensor:
        y = x @ self.weight.float()
        return y if self.bias is None else y + self.bias.float()


class LayerNorm(nn.LayerNorm):
    def __init__(self, width: int) -> None:
        super().__init__(width, _EPSILON)

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.normalized_shape, self.weight.float(), self.bias.float(), self.eps)


class MLP(nn.Module):
    """Linear, GELU, Linear, with a LayerNorm in front if ``norm``.

    Dropout is a layer here so that the layers have the published numbers.
    """

    def __init__(self, width: int, inner: int, out: int, *, norm: bool, dropout: float) -> None:
        super().__init__()
        first = [LayerNorm(width)] if norm else []
        layers = (
            Linear(width, inner, bias=True),
            nn.GELU(),
            nn.Dropout(dropout),
            Linear(inner, out, bias=True),
        )
        self.mlp = nn.Sequential(*first, *layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.mlp(x)


class Start(nn.Module):
    """Initial slots, all drawn from one normal distribution with learnt mean and log deviation."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.empty(1, 1, width))
        self.logstd = nn.Parameter(torch.empty(1, 1, width))

    def forward(self, noise: Tensor) -> Tensor:
        return self.mean.float() + noise * self.logstd.float().exp()


class GRUCell(nn.Module):
    """The gated unit of Cho et al. 2014 in torch's form, with gates in the order reset, update, new."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight_ih = nn.Parameter(torch.empty(width, 3 * width))
        self.weight_hh = nn.Parameter(torch.empty(width, 3 * width))
        self.bias_ih = nn.Parameter(torch.empty(3 * width))
        self.bias_hh = nn.Parameter(torch.empty(3 * width))

    def forward(self, x: Tensor, hidden: Tensor) -> Tensor:
        from_x = (x @ self.weight_ih.float() + self.bias_ih.float()).chunk(3, -1)
        from_hidden = (hidden @ self.weight_hh.float() + self.bias_hh.float()).chunk(3, -1)
        reset = torch.sigmoid(from_x[0] + from_hidden[0])
        update = torch.sigmoid(from_x[1] + from_hidden[1])
        new = torch.tanh(from_x[2] + reset * from_hidden[2])
        return (1 - update) * new + update * hidden


class SlotAttention(nn.Module):
    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.scale = width**-0.5
        self.norm_in = LayerNorm(width)
        self.proj_k = Linear(width, width)
        self.proj_v = Linear(width, width)
        self.proj_q = Linear(width, width)
        self.norm_slots_0 = LayerNorm(width)
        self.gru = GRUCell(width)
        self.norm_slots_1 = LayerNorm(width)
        self.ffn = MLP(width, inner, width, norm=False, dropout=_DROPOUT)

    def forward(self, x: Tensor, slots: Tensor) -> tuple[Tensor, Tensor]:
        """Map ``x [B,N,d]`` and ``slots [B,S,d]`` to new slots and the last attention ``[B,S,N]``."""
        key, value = self.read(x)
        start = slots
        for turn in range(TURNS):
            if self.training and turn == TURNS - 1:
                slots = slots.detach() + start - start.detach()
            attention = self.compete(slots, key)
            slots = self.update(slots, attention, value)
        return slots, attention

    def read(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return keys and values of the tokens, ``[B,N,d]`` each."""
        x = self.norm_in(x)
        return self.proj_k(x), self.proj_v(x)

    def compete(self, slots: Tensor, key: Tensor) -> Tensor:
        """Return the share of each token that each slot gets: ``[B,S,N]``, every column sums to 1."""
        query = self.proj_q(self.norm_slots_0(slots))
        return (torch.matmul(query, key.transpose(1, 2)) * self.scale).softmax(1)

    def update(self, slots: Tensor, attention: Tensor, value: Tensor) -> Tensor:
        """Update each slot with the mean of the tokens, weighted by its shares of them."""
        share = attention / (attention.sum(-1, keepdim=True) + _EPSILON)
        slots = self.gru(torch.matmul(share, value), slots)
        return slots + self.ffn(self.norm_slots_1(slots))


class SlotPruner(nn.Module):
    """The network without its decoder, which only training needs. ``width`` is the vision encoder's."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.slot_width = width // 2
        self.encode_project = MLP(width, 2 * width, self.slot_width, norm=True, dropout=0.0)
        self.initializ = Start(self.slot_width)
        self.aggregat = SlotAttention(self.slot_width, 2 * width)

    def attend(self, features: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Return slots ``[B,S,d]`` and their attention ``[B,S,N]``.

        ``features [B,N,D]`` float32; ``noise [B or 1,S,d]`` standard normal.
        """
        return self.aggregat(self.encode_project(features), self.initializ(noise))

    def reset(self) -> SlotPruner:
        """Set the published start values and make the parameters trainable.

        Biases are 0. Matrices are uniform, with bounds that follow from their size.
        """
        gru = self.aggregat.gru
        for part in self.modules():
            if isinstance(part, Linear):
                _uniform(part.weight, 1 / math.sqrt(part.weight.shape[0]))
        for matrix in (gru.weight_ih, gru.weight_hh):
            _uniform(matrix, 1 / math.sqrt(self.slot_width))
        for row in (self.initializ.mean, self.initializ.logstd):
            _uniform(row, math.sqrt(3 / self.slot_width))
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(True)
            if name.rpartition(".")[2].startswith("bias"):
                nn.init.zeros_(parameter)
        return self


def _uniform(weight: Tensor, bound: float) -> None:
    nn.init.uniform_(weight, -bound, bound)

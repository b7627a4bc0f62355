"""Fold factors into a decoder's weights. The outputs stay the same, and the tensors are easier to quantize.

Dividing the channels of an input by positive factors f and multiplying the matrices that read it by f changes
nothing: x W = (x / f) (f W), with W ``[in, out]``. The division goes into the module that makes x: the norm
before q, k and v, or before gate and up; the columns of v, since o reads a mixture of them; the columns of
up, since down reads silu(gate) * up. AWQ (arXiv 2306.00978) and SmoothQuant (arXiv 2211.10438) therefore add
no operator to a graph.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from torch import Tensor

__all__ = ["GROUPS", "Group", "Smoothed", "Weights", "of_layer"]


@dataclass(frozen=True)
class Group:
    """The matrices of a decoder layer that read one input, and the module that makes it.

    Both are paths in the layer.
    """

    reads: tuple[str, ...]
    maker: str

    @property
    def name(self) -> str:
        """The matrix under whose name the input's statistics are stored."""
        return self.reads[0]


GROUPS = (
    Group(("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), "input_layernorm"),
    Group(("self_attn.o_proj",), "self_attn.v_proj"),
    Group(("mlp.gate_proj", "mlp.up_proj"), "post_attention_layernorm"),
    Group(("mlp.down_proj",), "mlp.up_proj"),
)


def of_layer(name: str) -> tuple[str, str] | None:
    """Split ``llm.layers.3.mlp.up_proj.weight`` into ``llm.layers.3.`` and ``mlp.up_proj``.

    Returns None for a name outside the layers.
    """
    parts = name.split(".")
    if parts[:2] != ["llm", "layers"] or len(parts) < 5:
        return None
    return ".".join(parts[:3]) + ".", ".".join(parts[3:-1])


class Weights(Protocol):
    """A source of weights by name, such as ``export.spec.Weights``."""

    def __contains__(self, name: str) -> bool: ...

    def get(self, name: str) -> Tensor:
        """Return a weight: matrices are [in, out]."""
        ...


class Smoothed:
    """Weights with ``factors`` folded in. Other weights stay as they are.

    ``factors`` are float32 [in] by the weight's name, the same for all matrices of a group. Factors of
    ``o_proj`` need as many key heads as query heads.
    """

    def __init__(self, weights: Weights, factors: Mapping[str, np.ndarray]) -> None:
        self._weights, self._factors = weights, factors

    def __contains__(self, name: str) -> bool:
        return name in self._weights

    def get(self, name: str) -> Tensor:
        """Return the weight ``name`` with the factors of its inputs and of its outputs."""
        value = self._weights.get(name)
        place = of_layer(name)
        if place is None:
            return value
        layer, module = place
        made = next((group for group in GROUPS if group.maker == module), None)
        divisor = self._factors.get(f"{layer}{made.name}.weight") if made else None
        if name in self._factors:
            value = value.float() * value.new_tensor(self._factors[name]).float()[:, None]
        if divisor is not None:  # a norm, the columns of a matrix, or its bias
            value = value.float() / value.new_tensor(divisor).float()
        return value

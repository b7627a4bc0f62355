"""Fold factors into a decoder's weights. The outputs stay the same, and the tensors are easier to quantize.

Dividing the channels of an input by positive factors f and multiplying the matrices that read it by f changes
nothing: x W = (x / f) (f W), with W ``[in, out]``. The division goes into the module that makes x: the norm
before q, k and v, or before gate and up; the columns of v, since o reads a mixture of them; the columns of
up, since down reads silu(gate) * up. AWQ (arXiv 2306.00978) and SmoothQuant (arXiv 2211.10438) therefore add
no operator to a graph.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import numpy as np
from torch import Tensor

from foveate.calib.input_groups import GROUPS, of_layer

__all__ = ["Smoothed", "Weights"]


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

"""Weights that lie over other weights, and the matrices that a checkpoint holds quantized."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from foveate.calib.schemes.quantized import Quantized
from foveate.export.spec import Weights

__all__ = ["LayeredWeights", "TensorWeights", "packed"]


def packed(weights: Weights) -> Mapping[str, Callable[[], Quantized]]:
    """Return the matrices that the checkpoint itself holds quantized, by name. Most checkpoints have none."""
    found: Mapping[str, Callable[[], Quantized]] = getattr(weights, "packed", {})
    return found


class TensorWeights:
    """Weights that are already in memory, by name."""

    def __init__(self, tensors: Mapping[str, torch.Tensor]) -> None:
        self._tensors = tensors

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def get(self, name: str) -> torch.Tensor:
        """Return the tensor itself."""
        return self._tensors[name]


class LayeredWeights:
    """The weights ``above``, and those of ``below`` that these lack.

    Only ``below`` may hold quantized matrices.
    """

    def __init__(self, above: Weights, below: Weights) -> None:
        self._above, self._below = above, below
        self.packed = packed(below)

    def __contains__(self, name: str) -> bool:
        return name in self._above or name in self._below

    def get(self, name: str) -> torch.Tensor:
        """Return the tensor of the upper weights, or else of the lower ones."""
        return (self._above if name in self._above else self._below).get(name)

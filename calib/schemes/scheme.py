"""Quantization schemes: each quantizes matrices, and puts them into graphs."""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np
from torch import Tensor

from foveate.calib.schemes.graph_site import Site
from foveate.calib.schemes.quantized import Form, PartName, Quantized
from foveate.calib.statistics import InputStatistics

__all__ = ["Scheme"]


class Scheme(ABC):
    """A quantization scheme: ``SCHEME`` in a module of this package."""

    rounds_activations = False
    """True if products also round their inputs."""

    def takes(self, inputs: int, outputs: int) -> bool:
        """Return True if a matrix [inputs, outputs] can be quantized."""
        return True

    @abstractmethod
    def quantize(self, weight: np.ndarray) -> Quantized:
        """Quantize a matrix [K,N], float. Scales are rounded to float16 first.

        So float32 and float16 graphs dequantize to the same weights. Raises ValueError for a matrix that the
        scheme does not take.
        """

    @abstractmethod
    def needs(self, form: Form) -> tuple[PartName, ...]:
        """Return the parts that graphs of this form read."""

    @abstractmethod
    def place(self, site: Site) -> None:
        """Put the quantized matrix in the place of the site's weight."""

    def rounded(self, x: Tensor, form: Form, seen: InputStatistics | None) -> Tensor:
        """Return the input x [..., K] of one call as products read it.

        ``seen`` are its statistics. Forms with calibrated ranges need them.
        """
        return x

"""Quantized matrices, and the parts of them that are stored for graphs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property

import numpy as np
import onnx_ir as ir

__all__ = ["Form", "Part", "PartKind", "PartName", "Quantized", "unpack"]


@dataclass(frozen=True)
class Form:
    """The form of quantized weights that a dialect's engines read.

    ``dtype`` is the dtype of everything that is not quantized. ``dynamic``: the range of each row of
    an activation is found at run time; otherwise an activation has one range, which is calibrated.
    ``zero_points``: 4-bit weights may have zero points.
    """

    dtype: str
    dynamic: bool
    zero_points: bool

    def step(self, size: float) -> np.floating:
        """Return the scale for a step of ``size``, at least the dtype's smallest normal number."""
        dtype = np.dtype(self.dtype)
        return np.maximum(size, np.finfo(dtype).smallest_normal).astype(dtype)


class PartKind(StrEnum):
    """Contents of a part of a stored matrix ``[K,N]``. Only quantized ones have others than values."""

    VALUES = "values"
    """The values [K,N]. Their dtype "int7" means those of ``Quantized.narrow``, stored in int8."""

    SCALES = "scale"
    """The scales [G,N]."""

    COLUMN_SCALES = "channel"
    """The scales [N] of a matrix with one per column (G is 1)."""

    NARROW_COLUMN_SCALES = "channel7"
    """The scales [N] of ``Quantized.narrow``."""

    ZEROS = "zero"
    """The zeros [G,N]."""

    SHIFTS = "shift"
    """-scales * zeros [G,N], which the zeros add per sum of a block's inputs."""

    ORDER = "order"
    """The order [K]."""


@dataclass(frozen=True, order=True)
class PartName:
    """A part of a stored matrix, and its dtype."""

    kind: PartKind
    dtype: str

    @property
    def label(self) -> str:
        """The end of the name of its initializer."""
        return self.dtype if self.kind is PartKind.VALUES else self.kind.value


@dataclass(frozen=True)
class Part:
    """An array for external data: its bytes, its ONNX dtype and its shape."""

    data: np.ndarray
    dtype: ir.DataType
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Quantized:
    """The matrix ``w[order[k], n] = scales[k // block, n] * (values[k, n] - zeros[k // block, n])``.

    * ``values [K,N]``: int8 (also for 4-bit values) or float8_e4m3fn.
    * ``scales [G,N]``: float32 numbers that float16 can hold, so that graphs of both dtypes compute with the
      same weights. ``block`` is K / G.
    * ``zeros [G,N]``: int8; None is 0.
    * ``order [K]``: int64, the input that row k belongs to; None is k.
    * ``narrow``: returns the same matrix in 7 bits, in schemes with such a form.
    """

    values: np.ndarray
    scales: np.ndarray
    zeros: np.ndarray | None = None
    order: np.ndarray | None = None
    narrow: Callable[[], Quantized] | None = None

    @property
    def block(self) -> int:
        """The number of inputs that share a scale."""
        return len(self.values) // len(self.scales)

    def dequantize(self) -> np.ndarray:
        """Return the float32 weights [K,N] that a graph with these values computes with."""
        values = self.values.astype(np.float32).reshape(len(self.scales), self.block, -1)
        if self.zeros is not None:
            values -= self.zeros[:, None]
        weight = (values * self.scales[:, None]).reshape(self.values.shape)
        if self.order is None:
            return weight
        restored = np.empty_like(weight)
        restored[self.order] = weight
        return restored

    def part(self, name: PartName) -> Part | None:
        """Return a part, or None for zeros or an order that the matrix does not have."""
        match name.kind:
            case PartKind.VALUES if name.dtype == "int7":
                return _plain(self._narrowed.values)
            case PartKind.VALUES:
                return _packed(self.values) if name.dtype == "int4" else _plain(self.values)
            case PartKind.SCALES:
                return _plain(self.scales.astype(name.dtype))
            case PartKind.COLUMN_SCALES:
                return _plain(self.scales[0].astype(name.dtype))
            case PartKind.NARROW_COLUMN_SCALES:
                return _plain(self._narrowed.scales[0].astype(name.dtype))
            case PartKind.ZEROS:
                return None if self.zeros is None else _packed(self.zeros)
            case PartKind.SHIFTS:
                return None if self.zeros is None else _plain((-self.scales * self.zeros).astype(name.dtype))
            case PartKind.ORDER:
                return None if self.order is None else _plain(self.order)

    @cached_property
    def _narrowed(self) -> Quantized:
        assert self.narrow is not None, "only int8 has a form in 7 bits"
        return self.narrow()


def _plain(array: np.ndarray) -> Part:
    return Part(array, ir.DataType.from_numpy(array.dtype), array.shape)


def _packed(values: np.ndarray) -> Part:
    """Pack two 4-bit values into a byte, low nibble first, as ONNX and TensorRT read them."""
    nibbles = np.ascontiguousarray(values).reshape(-1, 2).view(np.uint8)
    return Part((nibbles[:, 0] & 0xF) | (nibbles[:, 1] << 4), ir.DataType.INT4, values.shape)


def unpack(raw: np.ndarray, dtype: ir.DataType, shape: tuple[int, ...]) -> np.ndarray:
    """Turn the bytes of a part back into its array. 4-bit values become int8."""
    if dtype == ir.DataType.INT4:
        nibbles = np.empty((raw.size, 2), np.int8)
        nibbles[:, 0], nibbles[:, 1] = raw & 0xF, raw >> 4
        return ((nibbles ^ 8) - 8).reshape(shape)
    return raw.view(dtype.numpy()).reshape(shape)

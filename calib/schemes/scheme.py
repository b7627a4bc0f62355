"""The parts of a quantization scheme: quantized matrices, and the places in a graph where they are read.

A scheme is a module of this package::

    ROUNDS_ACTIVATIONS: bool            # the inputs of products are rounded, too
    takes(inputs, outputs) -> bool      # a matrix of that shape can be quantized
    quantize(weight [K,N] float) -> Quantized
    needs(form) -> tuple[str, ...]      # the parts that graphs of this form read, see Quantized.part
    place(site) -> None                 # puts them in the place of the site's weight
    rounded(x, form, seen) -> Tensor    # if it rounds: the input x [..., K] of one call as products read it

Everything written is standard ONNX (``QuantizeLinear``, ``DequantizeLinear``, ``MatMulInteger``).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import onnx_ir as ir

from foveate.calib.statistics import InputStatistics

__all__ = ["Form", "Part", "Quantized", "Site", "unpack"]


@dataclass(frozen=True)
class Form:
    """The form of quantized weights that a dialect's engines read.

    ``dtype`` is the dtype of everything that is not quantized. ``dynamic``: ranges of activations are found
    at run time (``DynamicQuantizeLinear``) instead of calibrated. ``zero_points``: 4-bit weights may have
    zero points.
    """

    dtype: str
    dynamic: bool
    zero_points: bool

    def step(self, size: float) -> np.floating:
        """Return the scale for a step of ``size``, at least the dtype's smallest normal number."""
        dtype = np.dtype(self.dtype)
        return np.maximum(size, np.finfo(dtype).smallest_normal).astype(dtype)


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

    def part(self, name: str) -> Part | None:
        """Return the part ``name``, or None for zeros or an order that the matrix does not have.

        * ``int4``, ``int8``, ``float8_e4m3fn``: the values in that dtype.
        * ``scale.<dtype>`` [G,N], or ``channel.<dtype>`` [N] if G is 1: the scales.
        * ``int7``, ``channel7.<dtype>``: values (in int8) and scales of ``narrow``.
        * ``zero.int4`` [G,N]: the zeros.
        * ``shift.<dtype>`` [G,N]: -scales * zeros, which the zeros add per sum of a block's inputs.
        * ``order.int64`` [K]: the order.
        """
        kind, _, dtype = name.partition(".")
        if kind in ("int7", "channel7"):
            return self._narrowed.part(name.replace("7", "8" if kind == "int7" else "", 1))
        if kind == "scale":
            return _plain(self.scales.astype(dtype))
        if kind == "channel":
            return _plain(self.scales[0].astype(dtype))
        if kind == "order":
            return None if self.order is None else _plain(self.order)
        if kind == "shift":
            return None if self.zeros is None else _plain((-self.scales * self.zeros).astype(dtype))
        if kind == "zero":
            return None if self.zeros is None else _packed(self.zeros)
        if kind == "int4":
            return _packed(self.values)
        return _plain(self.values)

    @cached_property
    def _narrowed(self) -> Quantized:
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


@dataclass
class Site:
    """A weight's place in a graph: products read ``weight [K,N]``, and a scheme's ``place`` replaces it.

    * ``stored(part)``: returns the initializer of a part, None if the weight has no such part.
    * ``inputs``: calibrated statistics of the products' input. None without calibration; forms with ranges
      fixed at build time need them.
    * ``shared``: values already made from inputs in this graph, so that products of one input share them.
    """

    graph: ir.Graph
    weight: ir.Value
    form: Form
    stored: Callable[[str], ir.Value | None]
    inputs: InputStatistics | None
    shared: dict[tuple[object, ...], ir.Value]

    @property
    def products(self) -> list[ir.Node]:
        """The nodes ``x @ weight``. Nothing else may read the weight."""
        readers = [(use.node, use.idx) for use in self.weight.uses()]
        strange = [node.op_type for node, index in readers if (node.op_type, index) != ("MatMul", 1)]
        assert readers and not strange, f"{self.weight.name} is read by {strange or 'nobody'}"
        return [node for node, _ in readers]

    def insert(
        self,
        behind: ir.Value,
        operator: str,
        inputs: list[ir.Value],
        name: str,
        outputs: int = 1,
        **attributes: object,
    ) -> ir.Value:
        """Insert a node right after the one that computes ``behind``, or at the head of the graph, and return
        its output.

        Of several outputs it returns the first. The others are named ``name.<i>``.
        """
        node = ir.node(operator, inputs, attributes, num_outputs=outputs, name=name)
        for index, output in enumerate(node.outputs):
            output.name = f"{name}.{index}" if index else name
        if (producer := behind.producer()) is None:
            self.graph.insert_before(self.graph[0], node)
        else:
            self.graph.insert_after(producer, node)
        return node.outputs[0]

    def constant(self, name: str, array: np.ndarray) -> ir.Value:
        """Return a small initializer, stored in the ONNX file itself; one per name."""
        if name not in self.graph.initializers:
            tensor = ir.Tensor(np.asarray(array), name=name)
            value = ir.Value(
                name=name, shape=tensor.shape, type=ir.TensorType(tensor.dtype), const_value=tensor
            )
            self.graph.register_initializer(value)
        return self.graph.initializers[name]

    def once(self, source: ir.Value, what: object, make: Callable[[], ir.Value]) -> ir.Value:
        """Return the value that ``make`` makes from ``source``, or the one made earlier for another weight of
        this graph."""
        if (source, what) not in self.shared:
            self.shared[source, what] = make()
        return self.shared[source, what]

    def replace(self, product: ir.Node, value: ir.Value) -> None:
        """Replace the product's output by ``value`` in all nodes that read it. ``value`` takes its name."""
        old = product.outputs[0]
        value.shape, value.dtype = old.shape, old.dtype
        readers = [(use.node, use.idx) for use in old.uses() if use.node is not value.producer()]
        for node, index in readers:
            node.replace_input_with(index, value)
        for index, output in enumerate(self.graph.outputs):
            if output is old:
                self.graph.outputs[index] = value
        value.name, old.name = old.name, f"{old.name}.product"
        if not old.uses():
            self.graph.remove(product, safe=True)

    def rounded(self, product: ir.Node, step: float, zero: np.generic) -> ir.Value:
        """Round the product's input by ``QuantizeLinear`` to ``zero``'s dtype and back, with one ``step`` for
        all values."""
        scale, source = self.form.step(step), product.inputs[0]

        def make() -> ir.Value:
            name = f"{self.weight.name}.input"
            given = [
                self.constant(f"{name}.scale", scale),
                self.constant(f"zero.{zero.dtype.name}", zero),
            ]
            stored = self.insert(source, "QuantizeLinear", [source, *given], f"{name}.quantized")
            value = self.insert(stored, "DequantizeLinear", [stored, *given], f"{name}.rounded")
            value.shape, value.dtype = source.shape, source.dtype
            return value

        return self.once(source, (zero.dtype.name, float(scale)), make)

    def dequantized(self, inputs: list[ir.Value], **attributes: object) -> ir.Value:
        """Return the weight as ``DequantizeLinear`` of ``inputs``, at the head of the graph."""
        name = f"{self.weight.name}.value"
        value = self.insert(self.weight, "DequantizeLinear", inputs, name, **attributes)
        value.shape, value.dtype = self.weight.shape, self.weight.dtype
        return value

"""What a quantization scheme is: integers (or 8-bit floats) with scales, and the place in a graph that reads them.

A scheme is a module of this package::

    ROUNDS_ACTIVATIONS: bool                          # whether the inputs of the products are rounded, too
    takes(inputs, outputs) -> bool                    # whether a matrix of that shape can be encoded
    quantize(weight [K,N] float) -> Quantized
    needs(form) -> tuple[str, ...]                    # the parts that graphs of this form read, see Quantized.part
    place(site) -> None                               # puts them where the site's weight was
    rounded(x, form, seen) -> Tensor                  # where it rounds: the input x [..., K], computed at once, as products read it

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
    """What a dialect's engines take. ``dtype``: of all that is not quantized. ``dynamic``: the ranges of activations are
    found at run time (``DynamicQuantizeLinear``), not calibrated. ``zero_points``: 4-bit weights may have them."""

    dtype: str
    dynamic: bool
    zero_points: bool

    def step(self, size: float) -> np.floating:
        """The scale of an activation whose ``size`` is to be one step."""
        dtype = np.dtype(self.dtype)
        return np.maximum(size, np.finfo(dtype).smallest_normal).astype(dtype)


@dataclass(frozen=True)
class Part:
    """An array on its way into external data: its bytes, and how ONNX calls them."""

    data: np.ndarray
    dtype: ir.DataType
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Quantized:
    """The matrix ``w[order[k], n] = scales[k // block, n] * (values[k, n] - zeros[k // block, n])``.

    ``values [K,N]``: int8 (4-bit ones too) or float8_e4m3fn. ``scales [G,N]`` float32 that float16 holds as well, so that
    graphs of both dtypes compute with the same weights; block is K / G. ``zeros [G,N]`` int8, None: 0. ``order [K]`` int64:
    the input that row k belongs to, None: k. ``narrow`` gives the same matrix in 7 bits, where a scheme has such a form.
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
        """The float32 weights [K,N] that a graph holding these computes with."""
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
        """``int4``, ``int8``, ``float8_e4m3fn``: the values so stored. ``scale.<dtype>`` [G,N], or ``channel.<dtype>`` [N]
        where G is 1. ``int7`` and ``channel7.<dtype>``: values (in int8) and scales of ``narrow``. ``zero.int4`` [G,N];
        ``shift.<dtype>`` [G,N]: -scales * zeros, what zeros add per sum of a block's inputs; ``order.int64`` [K]. None for
        zeros and order that there are not."""
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
    """Two 4-bit values a byte, low nibble first, as ONNX and TensorRT read them."""
    nibbles = np.ascontiguousarray(values).reshape(-1, 2).view(np.uint8)
    return Part((nibbles[:, 0] & 0xF) | (nibbles[:, 1] << 4), ir.DataType.INT4, values.shape)


def unpack(raw: np.ndarray, dtype: ir.DataType, shape: tuple[int, ...]) -> np.ndarray:
    """Bytes of a part back to the array: 4-bit values come as int8."""
    if dtype == ir.DataType.INT4:
        nibbles = np.empty((raw.size, 2), np.int8)
        nibbles[:, 0], nibbles[:, 1] = raw & 0xF, raw >> 4
        return ((nibbles ^ 8) - 8).reshape(shape)
    return raw.view(dtype.numpy()).reshape(shape)


@dataclass
class Site:
    """A weight's place in a graph: ``weight [K,N]`` is read by products and goes away when a scheme's ``place`` is done.

    ``stored(part)`` is the initializer that holds a part, None where there is none. ``inputs`` is what calibration saw at the
    products' input; None without calibration, which forms with ranges fixed at build time cannot do without. ``shared`` is
    the graph's memory of what was made of inputs, so that products of one input read one form of it.
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
        """A node right behind the one that computes ``behind``, at the head of the graph where none does; its first output,
        the others are named ``name.<i>``."""
        node = ir.node(operator, inputs, attributes, num_outputs=outputs, name=name)
        for index, output in enumerate(node.outputs):
            output.name = f"{name}.{index}" if index else name
        if (producer := behind.producer()) is None:
            self.graph.insert_before(self.graph[0], node)
        else:
            self.graph.insert_after(producer, node)
        return node.outputs[0]

    def constant(self, name: str, array: np.ndarray) -> ir.Value:
        """A small initializer that stands in the file itself; one per name."""
        if name not in self.graph.initializers:
            tensor = ir.Tensor(np.asarray(array), name=name)
            value = ir.Value(
                name=name, shape=tensor.shape, type=ir.TensorType(tensor.dtype), const_value=tensor
            )
            self.graph.register_initializer(value)
        return self.graph.initializers[name]

    def once(self, source: ir.Value, what: object, make: Callable[[], ir.Value]) -> ir.Value:
        """What ``make`` makes of ``source``, or what it made before for another weight of this graph."""
        if (source, what) not in self.shared:
            self.shared[source, what] = make()
        return self.shared[source, what]

    def replace(self, product: ir.Node, value: ir.Value) -> None:
        """Everybody reads ``value`` where they read the product's output, whose name it takes."""
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
        """The product's input through ``QuantizeLinear`` to ``zero``'s dtype and back, one ``step`` for all of it."""
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
        """The weight as ``DequantizeLinear`` of ``inputs``, at the head of the graph."""
        name = f"{self.weight.name}.value"
        value = self.insert(self.weight, "DequantizeLinear", inputs, name, **attributes)
        value.shape, value.dtype = self.weight.shape, self.weight.dtype
        return value

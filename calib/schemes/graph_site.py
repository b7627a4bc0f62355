"""The place of a weight in a graph, where a scheme puts quantized weights in its stead.

Everything written is standard ONNX, with pairs of ``QuantizeLinear`` and ``DequantizeLinear``.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from foveate.calib.graph_values import like
from foveate.calib.schemes.quantized import Form, PartName
from foveate.calib.statistics import InputStatistics

__all__ = ["Site"]


@dataclass(frozen=True)
class Site:
    """A weight's place in a graph: products read ``weight [K,N]``, and a scheme's ``place`` replaces it.

    * ``find(part)``: returns the initializer of a part, None if the weight has no such part.
    * ``inputs``: calibrated statistics of the products' input. None without calibration; forms with ranges
      fixed at build time need them.
    * ``shared``: values already made from inputs in this graph, so that products of one input share them.
    """

    graph: ir.Graph
    weight: ir.Value
    form: Form
    find: Callable[[PartName], ir.Value | None]
    inputs: InputStatistics | None
    shared: dict[tuple[ir.Value, Hashable], ir.Value]

    def stored(self, part: PartName) -> ir.Value:
        """Return the initializer of a part that the weight must have."""
        value = self.find(part)
        assert value is not None, f"{self.weight.name} has no {part}"
        return value

    @property
    def products(self) -> list[ir.Node]:
        """The nodes ``x @ weight``. Nothing else may read the weight."""
        readers = [(use.node, use.idx) for use in self.weight.uses()]
        strange = [node.op_type for node, index in readers if (node.op_type, index) != ("MatMul", 1)]
        assert readers and not strange, f"{self.weight.name} is read by {strange or 'nobody'}"
        return [node for node, _ in readers]

    def insert(
        self, behind: ir.Value, operator: str, inputs: Sequence[ir.Value], name: str, **attributes: int
    ) -> ir.Value:
        """Insert a node right after the one that computes ``behind``, and return its output.

        If no node computes ``behind``, the node goes to the head of the graph.
        """
        node = ir.node(operator, inputs, attributes, name=name)
        node.outputs[0].name = name
        if (producer := behind.producer()) is None:
            self.graph.insert_before(self.graph[0], node)
        else:
            self.graph.insert_after(producer, node)
        return node.outputs[0]

    def constant(self, name: str, array: np.ndarray | np.generic) -> ir.Value:
        """Return a small initializer, stored in the ONNX file itself; one per name."""
        if name not in self.graph.initializers:
            tensor = ir.Tensor(np.asarray(array), name=name)
            value = ir.Value(
                name=name, shape=tensor.shape, type=ir.TensorType(tensor.dtype), const_value=tensor
            )
            self.graph.register_initializer(value)
        return self.graph.initializers[name]

    def once(self, source: ir.Value, what: Hashable, make: Callable[[], ir.Value]) -> ir.Value:
        """Return what ``make`` makes from ``source``; another weight of this graph may have made it before.

        ``what`` tells things that are made from one source apart.
        """
        if (source, what) not in self.shared:
            self.shared[source, what] = make()
        return self.shared[source, what]

    def replace(self, product: ir.Node, value: ir.Value) -> None:
        """Replace the product's output by ``value`` in all nodes that read it. ``value`` takes its name."""
        old = product.outputs[0]
        like(value, old)
        readers = [(use.node, use.idx) for use in old.uses() if use.node is not value.producer()]
        for node, index in readers:
            node.replace_input_with(index, value)
        for index, output in enumerate(self.graph.outputs):
            if output is old:
                self.graph.outputs[index] = value
        value.name, old.name = old.name, f"{old.name}.product"
        if not old.uses():
            self.graph.remove(product, safe=True)

    def rounded(self, source: ir.Value, step: float, zero: np.generic) -> ir.Value:
        """Round ``source`` to ``zero``'s dtype and back, with one ``step`` for all values.

        ``zero`` stands for 0.
        """
        scale = self.form.step(step)

        def make() -> ir.Value:
            name = f"{self.weight.name}.input"
            given = [
                self.constant(f"{name}.scale", scale),
                self.constant(f"zero.{zero.dtype.name}", zero),
            ]
            stored = self.insert(source, "QuantizeLinear", [source, *given], f"{name}.quantized")
            value = self.insert(stored, "DequantizeLinear", [stored, *given], f"{name}.rounded")
            return like(value, source)

        return self.once(source, (zero.dtype.name, float(scale)), make)

    def dequantized(self, inputs: Sequence[ir.Value], **attributes: int) -> ir.Value:
        """Return the weight as ``DequantizeLinear`` of ``inputs``, at the head of the graph."""
        name = f"{self.weight.name}.value"
        value = self.insert(self.weight, "DequantizeLinear", inputs, name, **attributes)
        return like(value, self.weight)

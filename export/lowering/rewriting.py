"""Rewrites of single nodes: ``Rewrite`` finds them, ``Before`` inserts the nodes that take their place."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from foveate.calib.graph_values import graph_of

__all__ = ["Before", "Rewrite"]


class Before:
    """Inserts nodes before ``node``. ``before("MatMul", a, b)`` returns the new node's output."""

    def __init__(self, model: ir.Model, node: ir.Node) -> None:
        self._model, self._node, self._made = model, node, 0

    def __call__(self, kind: str, *inputs: ir.Value, **attributes: int | tuple[int, ...]) -> ir.Value:
        """Insert a node with one output, and return that."""
        return self.several(kind, 1, *inputs, **attributes)[0]

    def several(
        self, kind: str, count: int, *inputs: ir.Value, **attributes: int | tuple[int, ...]
    ) -> list[ir.Value]:
        """Insert a node with ``count`` outputs, and return them."""
        made = ir.node(kind, inputs, attributes, num_outputs=count, name=self._name(kind))
        for number, value in enumerate(made.outputs):
            value.name = f"{made.name}.{number}"
        graph_of(self._node).insert_before(self._node, made)
        return list(made.outputs)

    def constant(self, value: object, dtype: str = "int64") -> ir.Value:
        """Return an initializer with this value, one per value and dtype."""
        name, known = f"{dtype} {value}", self._model.graph.initializers  # loops can read this scope, too
        if name not in known:
            tensor = ir.Tensor(np.asarray(value, dtype))
            kind = ir.TensorType(tensor.dtype)
            known.add(ir.Value(name=name, shape=tensor.shape, type=kind, const_value=tensor))
        return known[name]

    def cast(self, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        """Insert a cast to ``dtype``, and return its output."""
        made = self("Cast", value, to=dtype)
        made.dtype, made.shape = dtype, value.shape
        return made

    def length(self, value: ir.Value, axis: int) -> ir.Value:
        """Return the size of an axis: [1] int64."""
        return self("Shape", value, start=axis, end=axis + 1)

    def range(self, length: ir.Value) -> ir.Value:
        """Return the numbers from 0 to ``length [1]``: [length] int64."""
        zero, one = self.constant(0), self.constant(1)
        return self("Range", zero, self("Squeeze", length, self.constant([0])), one)

    def replaces(self, value: ir.Value) -> None:
        """Replace the node and its output by ``value``."""
        (old,) = self._node.outputs
        value.name, value.type, value.shape = old.name, old.type, old.shape  # tracing leaves some types None
        old.replace_all_uses_with(value, replace_graph_outputs=True)
        graph_of(self._node).remove(self._node, safe=True)

    def _name(self, what: str) -> str:
        self._made += 1
        return f"{self._node.name}.{what}.{self._made}"


class Rewrite(ir.passes.InPlacePass):
    """Replaces every node that ``takes`` accepts by the output of ``write``. Ensures that none is left."""

    kinds: tuple[str, ...]
    """The operators of the nodes."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite every such node, in loops as well."""
        found = list(self._found(model))
        for node in found:
            before = Before(model, node)
            before.replaces(self.write(before, node))
        return ir.passes.PassResult(model, modified=bool(found))

    def ensures(self, model: ir.Model) -> None:
        """Raise PostconditionError if a node is left."""
        for node in self._found(model):
            raise ir.passes.PostconditionError(f"{node.op_type} {node.name} is left")

    def _found(self, model: ir.Model) -> Iterator[ir.Node]:
        return (node for node in model.graph.all_nodes() if node.op_type in self.kinds and self.takes(node))

    def takes(self, node: ir.Node) -> bool:
        """Return True if a node of these ``kinds`` is to be replaced."""
        return True

    @abstractmethod
    def write(self, before: Before, node: ir.Node) -> ir.Value:
        """Insert nodes that compute the output of ``node``, and return the last one's output."""

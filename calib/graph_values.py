"""Facts about the values of an ONNX graph that must be known, and values that take them over.

onnx_ir types inputs, dtypes and shapes as optional. These functions return them, or fail with the name of the
value that lacks one.
"""

from __future__ import annotations

import onnx_ir as ir

__all__ = ["axis_size", "dtype_of", "graph_of", "input_of", "like", "shape_of"]


def input_of(node: ir.Node, index: int) -> ir.Value:
    """Return an input that the node has."""
    value = node.inputs[index]
    assert value is not None, f"{node.name} has no input {index}"
    return value


def graph_of(node: ir.Node) -> ir.Graph:
    """Return the graph that the node is in."""
    assert isinstance(node.graph, ir.Graph), f"{node.name} is in no graph"
    return node.graph


def dtype_of(value: ir.Value) -> ir.DataType:
    """Return the dtype of a value that has one."""
    assert value.dtype is not None, f"{value.name} has no dtype"
    return value.dtype


def shape_of(value: ir.Value) -> ir.Shape:
    """Return the shape of a value that has one."""
    assert value.shape is not None, f"{value.name} has no shape"
    return value.shape


def axis_size(value: ir.Value, axis: int) -> int:
    """Return the size of an axis that has the same size in every call."""
    size = shape_of(value)[axis]
    assert isinstance(size, int), f"axis {axis} of {value.name} is {size}"
    return size


def like(value: ir.Value, other: ir.Value) -> ir.Value:
    """Give ``value`` the shape and the dtype of ``other``, as far as they are known, and return it."""
    value.shape = other.shape
    if other.dtype is not None:
        value.dtype = other.dtype
    return value

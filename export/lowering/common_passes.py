"""Rewrites that dialects share. Each states what it requires and ensures."""

from __future__ import annotations

import onnx_ir as ir

from foveate.calib.graph_values import graph_of, input_of
from foveate.engines.spec import FLOAT, GraphSpec

__all__ = ["CausalByLength", "Float16Edges", "cast_behind"]

_MASK, _NONPAD = 3, 6  # positions of Attention-24's attn_mask and nonpad_kv_seqlen inputs


class CausalByLength(ir.passes.InPlacePass):
    """Replaces the explicit causal mask by ``is_causal`` with ``nonpad_kv_seqlen``.

    Attention then skips the unused part of the kv cache. Requires the mask of ``Decoder.causal_mask``, the
    new rows as the first input, ``write_index``, and an engine that honours ``nonpad_kv_seqlen`` (ONNX
    Runtime does; TensorRT ignores it silently). Ensures that no Attention node reads a mask.
    """

    def requires(self, model: ir.Model) -> None:
        """Raise PreconditionError for a graph without a kv cache."""
        if "write_index" not in {value.name for value in model.graph.inputs}:
            raise ir.passes.PreconditionError(f"{model.graph.name} has no input write_index")

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite every Attention node that reads a mask."""
        masked = [
            node for node in model.graph if node.op_type == "Attention" and _input(node, _MASK) is not None
        ]
        if masked:
            length = _cache_length(model.graph)
            for node in masked:
                node.resize_inputs(_NONPAD + 1)
                node.replace_input_with(_MASK, None)
                node.replace_input_with(_NONPAD, length)
                node.attributes["is_causal"] = ir.AttrInt64("is_causal", 1)
        return ir.passes.PassResult(model, modified=bool(masked))

    def ensures(self, model: ir.Model) -> None:
        """Raise PostconditionError if an Attention node still reads a mask."""
        for node in model.graph:
            if node.op_type == "Attention" and _input(node, _MASK) is not None:
                raise ir.passes.PostconditionError(f"{node.name} still reads a mask")


class Float16Edges(ir.passes.InPlacePass):
    """Gives a float32 graph float16 inputs and outputs. Its neighbours and kv caches stay as they are.

    Requires a graph traced in float32 whose kv caches are written only by ``TensorScatter`` and read only by
    ``Attention``. Ensures that the inputs and outputs that ``spec`` leaves in the compute dtype are float16.
    Attention over a kv cache computes in float16 as well, so that no cache is widened at every step.
    Everything else stays float32.
    """

    def __init__(self, spec: GraphSpec) -> None:
        self._floats = {tensor.name for tensor in (*spec.inputs, *spec.outputs) if tensor.dtype == FLOAT}
        self._caches = {name for pair in spec.in_place for name in pair}

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Insert the casts, and change the types of inputs, caches and outputs."""
        graph = model.graph
        for value in graph.inputs:
            if value.name in self._floats - self._caches:
                cast_behind(graph, value, ir.DataType.FLOAT)
            if value.name in self._floats:
                value.type = _float16()
        scatters = [node for node in graph if node.op_type == "TensorScatter"]
        for scatter in scatters:
            _cast_before(scatter, 1, ir.DataType.FLOAT16)
            scatter.outputs[0].type = _float16()
        for node in {use.node for scatter in scatters for use in scatter.outputs[0].uses()}:
            _cast_before(node, 0, ir.DataType.FLOAT16)  # the query
            cast_behind(graph, node.outputs[0], ir.DataType.FLOAT)
            node.outputs[0].type = _float16()
        for index, value in enumerate(graph.outputs):
            if value.name in self._floats - self._caches:
                name, narrow = value.name, _cast(value, ir.DataType.FLOAT16)
                graph.append(narrow)
                value.name, narrow.outputs[0].name = f"{name}.float32", name
                graph.outputs[index] = narrow.outputs[0]
        return ir.passes.PassResult(model, modified=True)

    def ensures(self, model: ir.Model) -> None:
        """Raise PostconditionError if an input or output has another dtype than float16."""
        for value in (*model.graph.inputs, *model.graph.outputs):
            if value.name in self._floats and value.dtype != ir.DataType.FLOAT16:
                raise ir.passes.PostconditionError(f"{value.name} is {value.dtype}")


def _float16() -> ir.TensorType:
    """Return a new type object: changing the dtype of a shared one would change every clone of the model."""
    return ir.TensorType(ir.DataType.FLOAT16)


def _cast(value: ir.Value, dtype: ir.DataType) -> ir.Node:
    """Return a node that casts ``value`` to ``dtype``."""
    node = ir.node("Cast", [value], {"to": dtype}, name=f"{value.name}.{dtype.name.lower()}")
    (made,) = node.outputs
    made.name, made.type, made.shape = node.name, ir.TensorType(dtype), value.shape
    return node


def cast_behind(graph: ir.Graph, value: ir.Value, dtype: ir.DataType) -> None:
    """Cast ``value`` to ``dtype`` for all nodes that read it."""
    node, producer = _cast(value, dtype), value.producer()
    value.replace_all_uses_with(node.outputs[0])
    node.replace_input_with(0, value)
    graph.insert_before(graph[0], node) if producer is None else graph.insert_after(producer, node)


def _cast_before(reader: ir.Node, index: int, dtype: ir.DataType) -> None:
    """Cast input ``index`` of the node ``reader`` to ``dtype``."""
    node = _cast(input_of(reader, index), dtype)
    node.name = node.outputs[0].name = f"{reader.name}.{node.name}"
    graph_of(reader).insert_before(reader, node)
    reader.replace_input_with(index, node.outputs[0])


def _input(node: ir.Node, index: int) -> ir.Value | None:
    return node.inputs[index] if index < len(node.inputs) else None


def _cache_length(graph: ir.Graph) -> ir.Value:
    """Compute ``write_index`` + the number of new rows at the head of the graph: [B] int64."""
    inputs = {value.name: value for value in graph.inputs}
    shape = ir.node("Shape", [graph.inputs[0]], {"start": 1, "end": 2}, name="cache_length.new")
    add = ir.node("Add", [inputs["write_index"], shape.outputs[0]], name="cache_length")
    for node, name in ((shape, "cache_length.new_rows"), (add, "cache_length")):
        node.outputs[0].name = name
        node.outputs[0].dtype = ir.DataType.INT64
    graph.insert_before(graph[0], [shape, add])
    return add.outputs[0]

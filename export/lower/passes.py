"""The rewrites that dialects are made of; each states what it requires and ensures."""

from __future__ import annotations

import onnx_ir as ir

__all__ = ["CausalByLength"]

_MASK, _NONPAD = 3, 6  # positions of Attention-24's attn_mask and nonpad_kv_seqlen inputs


class CausalByLength(ir.passes.InPlacePass):
    """Explicit causal mask -> ``is_causal`` with ``nonpad_kv_seqlen``: no work over the unused part of the cache.

    Requires the mask of ``Decoder.causal_mask``, the new rows as the first input, ``write_index``, and an engine that
    honours ``nonpad_kv_seqlen`` (ONNX Runtime does; TensorRT ignores it silently). Ensures that no Attention node reads
    a mask.
    """

    def requires(self, model: ir.Model) -> None:
        if "write_index" not in {value.name for value in model.graph.inputs}:
            raise ir.passes.PreconditionError(f"{model.graph.name} has no input write_index")

    def call(self, model: ir.Model) -> ir.passes.PassResult:
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
        for node in model.graph:
            if node.op_type == "Attention" and _input(node, _MASK) is not None:
                raise ir.passes.PostconditionError(f"{node.name} still reads a mask")


def _input(node: ir.Node, index: int) -> ir.Value | None:
    return node.inputs[index] if index < len(node.inputs) else None


def _cache_length(graph: ir.Graph) -> ir.Value:
    """``write_index + number of new rows``, computed at the head of the graph: [B] int64."""
    inputs = {value.name: value for value in graph.inputs}
    shape = ir.node("Shape", [graph.inputs[0]], {"start": 1, "end": 2}, name="cache_length.new")
    add = ir.node("Add", [inputs["write_index"], shape.outputs[0]], name="cache_length")
    for node, name in ((shape, "cache_length.new_rows"), (add, "cache_length")):
        node.outputs[0].name = name
        node.outputs[0].dtype = ir.DataType.INT64
    graph.insert_before(graph[0], [shape, add])
    return add.outputs[0]

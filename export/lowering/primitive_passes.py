"""The rewrites of the dialect ``primitive``: operators introduced after opset 20 are replaced by older ones.

Each rewrite follows the operator's definition in ONNX and the documentation of TensorRT 10.3's parser
(``tensorrt_10_3.json``).
"""

from __future__ import annotations

from collections.abc import Container

import numpy as np
import onnx_ir as ir

from foveate.calib.graph_values import axis_size, dtype_of, input_of
from foveate.engines.errors import UserError
from foveate.export.lowering.rewriting import Before, Rewrite

__all__ = ["AppendRows", "Attend", "DocumentedTypes", "Normalize", "Older", "Rotate"]

_KEYS, _VALUES, _MASK = 1, 2, 3  # positions of Attention-24's inputs
_ALL = np.iinfo(np.int64).max  # Slice's end


class Normalize(Rewrite):
    """RMSNormalization-23 over the last axis.

    ``x / sqrt(mean(x^2) + eps)`` is computed in float32, then multiplied by the weight in x's dtype.
    """

    kinds = ("RMSNormalization",)

    def write(self, before: Before, node: ir.Node) -> ir.Value:
        """Write the norm."""
        x, weight = input_of(node, 0), input_of(node, 1)
        wide = before.cast(x, ir.DataType.FLOAT)
        mean = before("ReduceMean", before("Mul", wide, wide), before.constant([-1]))
        eps = before.constant(node.attributes["epsilon"].as_float(), "float32")
        normed = before("Div", wide, before("Sqrt", before("Add", mean, eps)))
        return before("Mul", before.cast(normed, dtype_of(x)), weight)


class Rotate(Rewrite):
    """RotaryEmbedding-23 of ``x [B,H,T,D]``, half-split. ``position_ids`` select the rows of the tables."""

    kinds = ("RotaryEmbedding",)

    def write(self, before: Before, node: ir.Node) -> ir.Value:
        """Write the rotation."""
        x, *tables, positions = (input_of(node, index) for index in range(4))
        one = before.constant([1])
        cos, sin = (before("Unsqueeze", before("Gather", table, positions, axis=0), one) for table in tables)
        first, second = before.several("Split", 2, x, num_outputs=2, axis=-1)
        turned = (
            before("Sub", before("Mul", first, cos), before("Mul", second, sin)),
            before("Add", before("Mul", second, cos), before("Mul", first, sin)),
        )
        return before("Concat", *turned, axis=-1)


class Attend(Rewrite):
    """Attention-24 without a kv cache: products and a softmax in x's dtype, as the operator defines it."""

    kinds = ("Attention",)

    def write(self, before: Before, node: ir.Node) -> ir.Value:
        """Write the attention."""
        query, keys, values = (input_of(node, index) for index in range(3))
        scores = _scores(before, _scaled(before, node), query, keys)
        mask = node.inputs[_MASK] if len(node.inputs) > _MASK else None
        if mask is not None:
            boolean = mask.dtype == ir.DataType.BOOL
            scores = _masked(before, scores, mask, query) if boolean else before("Add", scores, mask)
        return _mixed(before, [(before("Softmax", scores, axis=-1), values)], query, values)


class AppendRows(Rewrite):
    """TensorScatter into a kv cache and Attention over it.

    The cache is only read then, and the new rows are outputs. Scores with the cache's rows and with the new
    rows are computed separately and joined for the softmax. A query attends to the cache's rows before
    ``write_index`` and to the new rows up to its own. Requires the mask of ``Decoder.causal_mask``. Ensures
    that ``present.<i>.key|value`` hold only the new rows ``[B,Hkv,T,Dh]``.
    """

    kinds = ("Attention",)

    def takes(self, node: ir.Node) -> bool:
        """Return True if the node reads a kv cache."""
        return _scatter(node.inputs[_KEYS]) is not None

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite the Attention nodes, and make the new rows outputs."""
        result = super().call(model)
        for number, value in enumerate(model.graph.outputs):
            scatter = _scatter(value)
            if scatter is not None:
                rows, name = input_of(scatter, 1), value.name
                value.name, rows.name = f"{name}.scattered", name
                model.graph.outputs[number] = rows
        return result

    def write(self, before: Before, node: ir.Node) -> ir.Value:
        """Write the attention over cached and new rows."""
        query = input_of(node, 0)
        past_keys, new_keys, write_index = _scattered(node, _KEYS)
        past_values, new_values, _ = _scattered(node, _VALUES)
        scaled = _scaled(before, node)
        parts = (_scores(before, scaled, query, keys) for keys in (past_keys, new_keys))
        length = before.length(past_keys, 2)
        seen = self._seen(before, length, before.length(query, 2), write_index)
        scores = _masked(before, before("Concat", *parts, axis=-1), seen, query)
        weights = before("Softmax", scores, axis=-1)
        zero, end, axis = before.constant([0]), before.constant([_ALL]), before.constant([3])
        old = before("Slice", weights, zero, length, axis)
        new = before("Slice", weights, length, end, axis)
        return _mixed(before, [(old, past_values), (new, new_values)], query, past_values)

    @staticmethod
    def _seen(before: Before, cache: ir.Value, rows: ir.Value, write_index: ir.Value) -> ir.Value:
        """Return the mask [T,S+T] bool. It is the same in every layer; a later pass keeps one copy."""
        written = before("Less", before.range(cache), write_index)
        past = before("Expand", written, before("Concat", rows, cache, axis=0))
        index = before.range(rows)
        keys, queries = (before("Unsqueeze", index, before.constant([axis])) for axis in (0, 1))
        return before("Concat", past, before("LessOrEqual", keys, queries), axis=1)


def _scatter(value: ir.Value | None) -> ir.Node | None:
    node = value.producer() if value is not None else None
    return node if node is not None and node.op_type == "TensorScatter" else None


def _scattered(attention: ir.Node, index: int) -> tuple[ir.Value, ir.Value, ir.Value]:
    """Return the inputs of the TensorScatter behind an input: the cache, the new rows, ``write_index``."""
    scatter = _scatter(input_of(attention, index))
    assert scatter is not None, f"{attention.name} reads no kv cache"
    return input_of(scatter, 0), input_of(scatter, 1), input_of(scatter, 2)


def _scaled(before: Before, attention: ir.Node) -> ir.Value:
    """Return the query times the scale, computed in float32.

    A scale that is no power of two, rounded to float16, would distort every score.
    """
    query = input_of(attention, 0)
    given = attention.attributes.get("scale")
    scale = given.as_float() if given is not None else axis_size(query, 3) ** -0.5
    wide = before.cast(query, ir.DataType.FLOAT)
    return before.cast(before("Mul", wide, before.constant(scale, "float32")), dtype_of(query))


def _scores(before: Before, scaled: ir.Value, query: ir.Value, keys: ir.Value) -> ir.Value:
    """Return the scores [B,H,T,S].

    Query heads that share keys are rows of one product, so keys are never repeated.
    """
    columns = before("Transpose", keys, perm=(0, 1, 3, 2))
    product = before("MatMul", _grouped(before, scaled, query, keys), columns)
    return _heads(before, product, query, keys)


def _grouped(before: Before, x: ir.Value, query: ir.Value, keys: ir.Value) -> ir.Value:
    """Reshape ``x [B,H,T,W]``, with the heads of ``query``, to [B,Hkv,H/Hkv*T,W]."""
    heads = axis_size(keys, 1)
    return _rows_of(before, x, heads) if axis_size(query, 1) != heads else x


def _heads(before: Before, x: ir.Value, query: ir.Value, keys: ir.Value) -> ir.Value:
    """Undo ``_grouped``."""
    heads = axis_size(query, 1)
    return _rows_of(before, x, heads) if heads != axis_size(keys, 1) else x


def _rows_of(before: Before, x: ir.Value, heads: int) -> ir.Value:
    return before("Reshape", x, before.constant([0, heads, -1, 0]))  # 0: the axis stays


def _masked(before: Before, scores: ir.Value, seen: ir.Value, query: ir.Value) -> ir.Value:
    """Return the scores, with the dtype's lowest number where they are not ``seen``."""
    dtype = dtype_of(query).numpy()
    return before("Where", seen, scores, before.constant(np.finfo(dtype).min, dtype.name))


def _mixed(
    before: Before, parts: list[tuple[ir.Value, ir.Value]], query: ir.Value, values: ir.Value
) -> ir.Value:
    """Return the sum of weights times values: [B,H,T,Dh]."""
    products = [before("MatMul", _grouped(before, weights, query, values), rows) for weights, rows in parts]
    total = products[0] if len(products) == 1 else before("Add", *products)
    return _heads(before, total, query, values)


class DocumentedTypes(Rewrite):
    """Clip and CumSum of integers and Equal of booleans, which TensorRT 10.3 documents only for other types.

    Clip becomes Max and Min. Equal becomes Not of Xor. CumSum counts in float32, which is exact below 2^24;
    no graph counts more than its rows.
    """

    kinds = ("Clip", "CumSum", "Equal")

    def takes(self, node: ir.Node) -> bool:
        """Return True for the types that TensorRT 10.3 does not document."""
        if node.op_type == "Equal":
            return any(_is_truth(input_of(node, index)) for index in range(2))
        return input_of(node, 0).dtype in (ir.DataType.INT64, ir.DataType.INT32)

    def write(self, before: Before, node: ir.Node) -> ir.Value:
        """Write the documented form."""
        x = input_of(node, 0)
        if node.op_type == "Equal":
            other = input_of(node, 1)
            for value in (x, other, *node.outputs):
                value.dtype = ir.DataType.BOOL
            return before("Not", before("Xor", x, other))
        if node.op_type == "CumSum":
            wide = before.cast(x, ir.DataType.FLOAT)
            attributes = {name: attribute.as_int() for name, attribute in node.attributes.items()}
            return before.cast(before("CumSum", wide, input_of(node, 1), **attributes), dtype_of(x))
        for kind, bound in zip(("Max", "Min"), node.inputs[1:], strict=False):
            x = x if bound is None else before(kind, x, bound)
        return x


def _is_truth(value: ir.Value) -> bool:
    """Return True if ``value`` is boolean. Tracing leaves out the types of intermediate comparisons."""
    producer = value.producer()
    return value.dtype == ir.DataType.BOOL or (producer is not None and producer.op_type in _TRUTHS)


_TRUTHS = frozenset(
    ("And", "Equal", "Greater", "GreaterOrEqual", "IsNaN", "Less", "LessOrEqual", "Not", "Or", "Xor")
)


class Older(ir.passes.InPlacePass):
    """Declares opset ``version`` instead of 24.

    Raises UserError for a node that is not among the ``operators``.
    """

    def __init__(self, version: int, ir_version: int, operators: Container[str]) -> None:
        self._version, self._ir_version, self._operators = version, ir_version, operators

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Check the operators, and set the versions."""
        for node in model.graph.all_nodes():
            if node.op_type not in self._operators:
                raise UserError(
                    f"{model.graph.name} has no form in the dialect primitive "
                    f"| {node.op_type} {node.name} is not among the operators of TensorRT 10.3 "
                    "| build --dialects ort,native, or take another method"
                )
        model.opset_imports[""], model.ir_version = self._version, self._ir_version
        return ir.passes.PassResult(model, modified=True)

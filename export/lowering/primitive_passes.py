"""The rewrites of the dialect ``primitive``: operators introduced after opset 20 are replaced by older ones.

Each rewrite follows the operator's definition in ONNX and the documentation of TensorRT 10.3's parser
(``tensorrt_10_3.json``).
"""

from __future__ import annotations

from collections.abc import Container, Iterator

import numpy as np
import onnx_ir as ir

from foveate.engines.errors import UserError

__all__ = ["AppendRows", "Attend", "DocumentedTypes", "Normalize", "Older", "Rotate"]

_KEYS, _VALUES, _MASK = 1, 2, 3  # positions of Attention-24's inputs
_ALL = np.iinfo(np.int64).max  # Slice's end


class _Before:
    """Inserts nodes before ``node``. ``before("MatMul", a, b)`` returns the new node's output."""

    def __init__(self, model: ir.Model, node: ir.Node) -> None:
        self._model, self._node, self._made = model, node, 0

    def __call__(self, kind: str, *inputs: ir.Value | None, **attributes: float) -> ir.Value:
        return self.several(kind, 1, *inputs, **attributes)[0]

    def several(self, kind: str, count: int, *inputs: ir.Value | None, **attributes: int) -> list[ir.Value]:
        made = ir.node(kind, inputs, attributes, num_outputs=count, name=self._name(kind))
        for number, value in enumerate(made.outputs):
            value.name = f"{made.name}.{number}"
        self._node.graph.insert_before(self._node, made)
        return list(made.outputs)

    def constant(self, value: object, dtype: str = "int64") -> ir.Value:
        name, known = f"{dtype} {value}", self._model.graph.initializers  # loops can read this scope, too
        if name not in known:
            tensor = ir.tensor(np.asarray(value, dtype))
            kind = ir.TensorType(tensor.dtype)
            known.add(ir.Value(name=name, shape=tensor.shape, type=kind, const_value=tensor))
        return known[name]

    def cast(self, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        made = self("Cast", value, to=dtype)
        made.dtype, made.shape = dtype, value.shape
        return made

    def length(self, value: ir.Value, axis: int) -> ir.Value:
        """Return the size of an axis: [1] int64."""
        return self("Shape", value, start=axis, end=axis + 1)

    def range(self, length: ir.Value) -> ir.Value:
        zero, one = self.constant(0), self.constant(1)
        return self("Range", zero, self("Squeeze", length, self.constant([0])), one)

    def replaces(self, value: ir.Value) -> None:
        """Replace the node and its output by ``value``."""
        (old,) = self._node.outputs
        value.name, value.type, value.shape = old.name, old.type, old.shape  # tracing leaves some types None
        old.replace_all_uses_with(value, replace_graph_outputs=True)
        self._node.graph.remove(self._node, safe=True)

    def _name(self, what: str) -> str:
        self._made += 1
        return f"{self._node.name}.{what}.{self._made}"


class _Rewrite(ir.passes.InPlacePass):
    """Replaces every node that ``takes`` accepts by the output of ``write``. Ensures that none is left."""

    kinds: tuple[str, ...]

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        found = list(self._found(model))
        for node in found:
            before = _Before(model, node)
            before.replaces(self.write(before, node))
        return ir.passes.PassResult(model, modified=bool(found))

    def ensures(self, model: ir.Model) -> None:
        for node in self._found(model):
            raise ir.passes.PostconditionError(f"{node.op_type} {node.name} is left")

    def _found(self, model: ir.Model) -> Iterator[ir.Node]:
        return (node for node in model.graph.all_nodes() if node.op_type in self.kinds and self.takes(node))

    def takes(self, node: ir.Node) -> bool:
        return True

    def write(self, before: _Before, node: ir.Node) -> ir.Value:
        raise NotImplementedError


class Normalize(_Rewrite):
    """RMSNormalization-23 over the last axis: ``x / sqrt(mean(x^2) + eps)`` in float32, then the weight in
    x's dtype."""

    kinds = ("RMSNormalization",)

    def write(self, before: _Before, node: ir.Node) -> ir.Value:
        x, weight = node.inputs
        wide = before.cast(x, ir.DataType.FLOAT)
        mean = before("ReduceMean", before("Mul", wide, wide), before.constant([-1]))
        eps = before.constant(node.attributes["epsilon"].as_float(), "float32")
        normed = before("Div", wide, before("Sqrt", before("Add", mean, eps)))
        return before("Mul", before.cast(normed, x.dtype), weight)


class Rotate(_Rewrite):
    """RotaryEmbedding-23 of ``x [B,H,T,D]``, half-split. ``position_ids`` select the rows of the tables."""

    kinds = ("RotaryEmbedding",)

    def write(self, before: _Before, node: ir.Node) -> ir.Value:
        x, *tables, positions = node.inputs
        one, last = before.constant([1]), {"axis": -1}
        cos, sin = (before("Unsqueeze", before("Gather", table, positions, axis=0), one) for table in tables)
        first, second = before.several("Split", 2, x, num_outputs=2, **last)
        turned = (
            before("Sub", before("Mul", first, cos), before("Mul", second, sin)),
            before("Add", before("Mul", second, cos), before("Mul", first, sin)),
        )
        return before("Concat", *turned, **last)


class Attend(_Rewrite):
    """Attention-24 without a kv cache: products and a softmax in x's dtype, as the operator defines it."""

    kinds = ("Attention",)

    def write(self, before: _Before, node: ir.Node) -> ir.Value:
        query, keys, values = node.inputs[:3]
        scores = _scores(before, _scaled(before, node), query, keys)
        mask = node.inputs[_MASK] if len(node.inputs) > _MASK else None
        if mask is not None:
            boolean = mask.dtype == ir.DataType.BOOL
            scores = _masked(before, scores, mask, query.dtype) if boolean else before("Add", scores, mask)
        return _mixed(before, [(before("Softmax", scores, axis=-1), values)], query, values)


class AppendRows(_Rewrite):
    """TensorScatter into a kv cache and Attention over it: the cache is only read, and the new rows are
    outputs.

    Scores with the cache's rows and with the new rows are computed separately and joined for the softmax. A
    query attends to the cache's rows before ``write_index`` and to the new rows up to its own. Requires the
    mask of ``Decoder.causal_mask``. Ensures that ``present.<i>.key|value`` hold only the new rows
    ``[B,Hkv,T,Dh]``.
    """

    kinds = ("Attention",)

    def takes(self, node: ir.Node) -> bool:
        return _scatter(node.inputs[_KEYS]) is not None

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        result = super().call(model)
        for number, value in enumerate(model.graph.outputs):
            scatter = _scatter(value)
            if scatter is not None:
                rows, name = scatter.inputs[1], value.name
                value.name, rows.name = f"{name}.scattered", name
                model.graph.outputs[number] = rows
        return result

    def write(self, before: _Before, node: ir.Node) -> ir.Value:
        query = node.inputs[0]
        caches = [_scatter(node.inputs[at]).inputs for at in (_KEYS, _VALUES)]
        (past_keys, new_keys, write_index), (past_values, new_values, _) = caches
        scaled = _scaled(before, node)
        parts = (_scores(before, scaled, query, keys) for keys in (past_keys, new_keys))
        length = before.length(past_keys, 2)
        seen = self._seen(before, length, before.length(query, 2), write_index)
        scores = _masked(before, before("Concat", *parts, axis=-1), seen, query.dtype)
        weights = before("Softmax", scores, axis=-1)
        zero, end, axis = before.constant([0]), before.constant([_ALL]), before.constant([3])
        old = before("Slice", weights, zero, length, axis)
        new = before("Slice", weights, length, end, axis)
        return _mixed(before, [(old, past_values), (new, new_values)], query, past_values)

    @staticmethod
    def _seen(before: _Before, cache: ir.Value, rows: ir.Value, write_index: ir.Value) -> ir.Value:
        """Return the mask [T,S+T] bool. It is the same in every layer; a later pass keeps one copy."""
        written = before("Less", before.range(cache), write_index)
        past = before("Expand", written, before("Concat", rows, cache, axis=0))
        index = before.range(rows)
        keys, queries = (before("Unsqueeze", index, before.constant([axis])) for axis in (0, 1))
        return before("Concat", past, before("LessOrEqual", keys, queries), axis=1)


def _scatter(value: ir.Value | None) -> ir.Node | None:
    node = value.producer() if value is not None else None
    return node if node is not None and node.op_type == "TensorScatter" else None


def _scaled(before: _Before, attention: ir.Node) -> ir.Value:
    """Return the query times the scale, computed in float32.

    A scale that is no power of two, rounded to float16, would distort every score.
    """
    query = attention.inputs[0]
    given = attention.attributes.get("scale")
    scale = given.as_float() if given is not None else query.shape[3] ** -0.5
    wide = before.cast(query, ir.DataType.FLOAT)
    return before.cast(before("Mul", wide, before.constant(scale, "float32")), query.dtype)


def _scores(before: _Before, scaled: ir.Value, query: ir.Value, keys: ir.Value) -> ir.Value:
    """Return the scores [B,H,T,S]. Query heads that share keys are rows of one product, so keys are never
    repeated."""
    columns = before("Transpose", keys, perm=(0, 1, 3, 2))
    product = before("MatMul", _grouped(before, scaled, query, keys), columns)
    return _heads(before, product, query, keys)


def _grouped(before: _Before, x: ir.Value, query: ir.Value, keys: ir.Value) -> ir.Value:
    """Reshape ``x [B,H,T,W]``, with the heads of ``query``, to [B,Hkv,H/Hkv*T,W]."""
    return _rows_of(before, x, keys.shape[1]) if query.shape[1] != keys.shape[1] else x


def _heads(before: _Before, x: ir.Value, query: ir.Value, keys: ir.Value) -> ir.Value:
    """Undo ``_grouped``."""
    return _rows_of(before, x, query.shape[1]) if query.shape[1] != keys.shape[1] else x


def _rows_of(before: _Before, x: ir.Value, heads: int) -> ir.Value:
    return before("Reshape", x, before.constant([0, heads, -1, 0]))  # 0: the axis stays


def _masked(before: _Before, scores: ir.Value, seen: ir.Value, dtype: ir.DataType) -> ir.Value:
    return before("Where", seen, scores, before.constant(np.finfo(dtype.numpy()).min, dtype.numpy().name))


def _mixed(
    before: _Before, parts: list[tuple[ir.Value, ir.Value]], query: ir.Value, values: ir.Value
) -> ir.Value:
    """Return the sum of weights times values: [B,H,T,Dh]."""
    products = [before("MatMul", _grouped(before, weights, query, values), rows) for weights, rows in parts]
    total = products[0] if len(products) == 1 else before("Add", *products)
    return _heads(before, total, query, values)


class DocumentedTypes(_Rewrite):
    """Clip and CumSum of integers and Equal of booleans, which TensorRT 10.3 documents only for other types.

    Clip becomes Max and Min. Equal becomes Not of Xor. CumSum counts in float32, which is exact below 2^24;
    no graph counts more than its rows.
    """

    kinds = ("Clip", "CumSum", "Equal")

    def takes(self, node: ir.Node) -> bool:
        if node.op_type == "Equal":
            return any(_is_truth(value) for value in node.inputs)
        return node.inputs[0].dtype in (ir.DataType.INT64, ir.DataType.INT32)

    def write(self, before: _Before, node: ir.Node) -> ir.Value:
        x, *others = node.inputs
        if node.op_type == "Equal":
            for value in (*node.inputs, *node.outputs):
                value.dtype = ir.DataType.BOOL
            return before("Not", before("Xor", x, *others))
        if node.op_type == "CumSum":
            wide = before.cast(x, ir.DataType.FLOAT)
            attributes = {name: attribute.as_int() for name, attribute in node.attributes.items()}
            return before.cast(before("CumSum", wide, others[0], **attributes), x.dtype)
        for kind, bound in zip(("Max", "Min"), others, strict=False):
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
    """Declare opset ``version`` instead of 24. Raises UserError for a node that is not among the
    ``operators``."""

    def __init__(self, version: int, ir_version: int, operators: Container[str]) -> None:
        self._version, self._ir_version, self._operators = version, ir_version, operators

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        for node in model.graph.all_nodes():
            if node.op_type not in self._operators:
                raise UserError(
                    f"{model.graph.name} has no form in the dialect primitive "
                    f"| {node.op_type} {node.name} is not among the operators of TensorRT 10.3 "
                    "| build --dialects ort,native, or take another method"
                )
        model.opset_imports[""], model.ir_version = self._version, self._ir_version
        return ir.passes.PassResult(model, modified=True)

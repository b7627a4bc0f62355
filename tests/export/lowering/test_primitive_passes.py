"""Each rewrite of the dialect ``primitive`` against the operator that it replaces, both in ONNX Runtime."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper
from onnx_ir.passes import common

from foveate.engines.errors import UserError
from foveate.engines.ort.backend import onnxruntime
from foveate.engines.spec import GraphSpec, Symbol, TensorSpec
from foveate.export.lowering import primitive
from foveate.export.lowering import primitive_passes as passes

RANDOM = np.random.default_rng(3)


def value(name: str, array: np.ndarray) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)


def rewritten(
    kind: str,
    inputs: dict[str, np.ndarray | None],
    output: tuple[int, int],
    *rewrites: object,
    **attributes: object,
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Return the answer of one node, the answer of its rewritten form, and the latter's operators.

    ``output`` is the dtype and the rank of the answer.
    """
    given = {name: array for name, array in inputs.items() if array is not None}
    names = [name if array is not None else "" for name, array in inputs.items()]
    out = helper.make_tensor_value_info("y", output[0], [None] * output[1])
    node = helper.make_node(kind, names, ["y"], name="node", **attributes)
    graph = helper.make_graph([node], "g", [value(name, array) for name, array in given.items()], [out])
    opset = [helper.make_opsetid("", 24)]
    model = onnx.shape_inference.infer_shapes(helper.make_model(graph, opset_imports=opset, ir_version=10))
    lowered = ir.from_proto(model)
    for rewrite in (*rewrites, passes.Older(20, 10, primitive.OPERATORS)):
        assert rewrite(lowered).modified
    after = ir.to_proto(lowered)
    onnx.checker.check_model(after, full_check=True)
    before, now = (
        onnxruntime.InferenceSession(each.SerializeToString()).run(None, given)[0] for each in (model, after)
    )
    assert before.shape == now.shape and before.dtype == now.dtype
    return before, now, sorted({node.op_type for node in after.graph.node})


def normal(*shape: int, dtype: str = "float32") -> np.ndarray:
    return RANDOM.standard_normal(shape).astype(dtype)


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (4, 2), (6, 1)])
@pytest.mark.parametrize("mask", ["none", "bool", "float"])
def test_attention(heads: int, kv_heads: int, mask: str) -> None:
    seen = np.tril(np.ones((5, 9), bool), 4)
    masks = {"none": None, "bool": seen, "float": np.where(seen, 0.5, -50).astype("float32")}
    inputs = {
        "q": normal(1, heads, 5, 16),
        "k": normal(1, kv_heads, 9, 16),
        "v": normal(1, kv_heads, 9, 16),
        "mask": masks[mask],
    }
    before, now, kinds = rewritten("Attention", inputs, (TensorProto.FLOAT, 4), passes.Attend())
    np.testing.assert_allclose(now, before, atol=1e-5)
    assert "Attention" not in kinds


@pytest.mark.parametrize("kv_heads", [4, 2])
def test_attention_of_several_windows_at_once(kv_heads: int) -> None:
    shapes = {"q": (3, 4, 5, 16), "k": (3, kv_heads, 7, 16), "v": (3, kv_heads, 7, 16)}
    inputs: dict[str, np.ndarray | None] = {name: normal(*shape) for name, shape in shapes.items()}
    inputs["mask"] = RANDOM.integers(0, 2, (3, 1, 5, 7)) > 0
    inputs["mask"][..., 0] = True
    before, now, _ = rewritten("Attention", inputs, (TensorProto.FLOAT, 4), passes.Attend())
    np.testing.assert_allclose(now, before, atol=1e-5)


def test_attention_has_its_own_scale_and_float16_stays_float16() -> None:
    inputs = {name: normal(1, 2, 7, 16, dtype="float16") for name in "qkv"}
    before, now, _ = rewritten("Attention", inputs, (TensorProto.FLOAT16, 4), passes.Attend(), scale=0.7)
    np.testing.assert_allclose(now, before, atol=4e-3)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_rms_norm(dtype: str) -> None:
    inputs = {"x": 30 * normal(1, 5, 32, dtype=dtype), "weight": normal(32, dtype=dtype)}
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    before, now, _ = rewritten("RMSNormalization", inputs, (kind, 3), passes.Normalize(), epsilon=1e-3)
    np.testing.assert_allclose(now, before, rtol=2e-6 if dtype == "float32" else 2e-3)


def test_rotary_embedding() -> None:
    angles = RANDOM.uniform(0, 6, (20, 8)).astype("float32")
    inputs = {
        "x": normal(1, 3, 5, 16),
        "cos": np.cos(angles),
        "sin": np.sin(angles),
        "positions": np.array([[0, 19, 4, 4, 7]]),
    }
    before, now, _ = rewritten("RotaryEmbedding", inputs, (TensorProto.FLOAT, 4), passes.Rotate())
    np.testing.assert_allclose(now, before, atol=1e-6)


@pytest.mark.parametrize(
    ("kind", "inputs"),
    [
        ("Clip", {"x": np.array([[-5, 3, 9]]), "low": np.array(0), "high": np.array(7)}),
        ("Clip", {"x": np.array([[-5, 3, 9]]), "low": None, "high": np.array(7)}),
        ("CumSum", {"x": np.array([[1, 0, 2, 40000]]), "axis": np.array(1)}),
        ("Equal", {"x": np.array([[True, False]]), "z": np.array([[True], [False]])}),
    ],
)
def test_types_that_are_not_documented(kind: str, inputs: dict[str, np.ndarray | None]) -> None:
    dtype = TensorProto.BOOL if kind == "Equal" else TensorProto.INT64
    if kind == "CumSum":  # TensorRT wants the axis as an initializer, ONNX Runtime takes either
        before, now, kinds = rewritten(kind, inputs, (dtype, 2), passes.DocumentedTypes(), exclusive=1)
    else:
        before, now, kinds = rewritten(kind, inputs, (dtype, 2), passes.DocumentedTypes())
        assert kind not in kinds
    np.testing.assert_array_equal(now, before)


def test_an_operator_that_tensorrt_10_3_lacks_is_named() -> None:
    with pytest.raises(UserError, match=r"g has no form .* Unique node is not among .* --dialects"):
        rewritten("Unique", {"x": normal(4)}, (TensorProto.FLOAT, 1))


def test_a_cache_is_read_and_its_new_rows_are_given_out() -> None:
    """Chunks with a cache whose unwritten rows are garbage give what attention over all rows gives."""
    tokens, cache, heads, kv_heads, width = 11, 16, 4, 2, 8
    whole = {
        name: normal(1, h, tokens, width) for name, h in (("q", heads), ("k", kv_heads), ("v", kv_heads))
    }
    session = onnxruntime.InferenceSession(ir.to_proto(_cached(heads, kv_heads, width)).SerializeToString())
    past = {
        name: np.full((1, kv_heads, cache, width), 1e3, "float32") for name in ("past.0.key", "past.0.value")
    }
    answers = []
    for start, end in ((0, 6), (6, 7), (7, 11)):
        feeds = {name: array[:, :, start:end] for name, array in whole.items()}
        rows = {"write_index": np.array([start]), "hidden": np.zeros((1, end - start, 1), "float32")}
        answer, key, rows_of_value = session.run(None, feeds | past | rows)
        np.testing.assert_array_equal(key, feeds["k"])
        for name, new in (("past.0.key", key), ("past.0.value", rows_of_value)):
            past[name][:, :, start:end] = new
        answers.append(answer)
    np.testing.assert_allclose(np.concatenate(answers, axis=2), _causal(**whole), atol=1e-5)


def _cached(heads: int, kv_heads: int, width: int) -> ir.Model:
    def info(name: str, shape: list[object], dtype: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, dtype, shape)

    new, past = [1, kv_heads, "tokens", width], [1, kv_heads, "cache", width]
    node = helper.make_node
    nodes = [
        node("Cast", ["seen"], ["mask"], to=TensorProto.BOOL),
        *(node("Identity", [name[0]], [name]) for name in ("keys", "values")),
        node(
            "TensorScatter",
            ["past.0.key", "keys", "write_index"],
            ["present.0.key"],
            axis=2,
            name="write.keys",
        ),
        node(
            "TensorScatter",
            ["past.0.value", "values", "write_index"],
            ["present.0.value"],
            axis=2,
            name="write.values",
        ),
        node("Attention", ["q", "present.0.key", "present.0.value", "mask"], ["y"], name="attention"),
    ]
    inputs = [
        info("hidden", [1, "tokens", 1]),
        info("q", [1, heads, "tokens", width]),
        *(info(name, new) for name in "kv"),
        info("write_index", [1], TensorProto.INT64),
        *(info(f"past.0.{kind}", past) for kind in ("key", "value")),
    ]
    outputs = [
        info("y", [1, heads, "tokens", width]),
        *(info(f"present.0.{kind}", new) for kind in ("key", "value")),
    ]
    seen = [helper.make_tensor("seen", TensorProto.FLOAT, [1, 1], [1.0])]  # its values are not looked at
    graph = helper.make_graph(nodes, "g", inputs, outputs, seen)
    opset = [helper.make_opsetid("", 24)]
    proto = helper.make_model(graph, opset_imports=opset, ir_version=10)
    model = ir.from_proto(onnx.shape_inference.infer_shapes(proto))
    for name, shape in (("present.0.key", past), ("present.0.value", past)):
        (found,) = (each for each in model.graph.outputs if each.name == name)
        found.shape = ir.Shape(shape)
    passes.AppendRows()(model)
    common.RemoveUnusedNodesPass()(model)
    common.TopologicalSortPass()(model)
    passes.Older(20, 10, primitive.OPERATORS)(model)
    return model


def _causal(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
    k, v = (np.repeat(x, q.shape[1] // k.shape[1], axis=1) for x in (k, v))
    scores = q @ k.swapaxes(2, 3) * q.shape[3] ** -0.5
    scores = np.where(np.tril(np.ones(scores.shape[2:], bool)), scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True) @ v


def test_the_spec_of_a_graph_that_appends() -> None:
    tokens, cache = Symbol("tokens", 1, 4, 8), Symbol("cache", 1, 8, 16)
    past = TensorSpec("past.0.key", "float16", (1, 2, cache, 8))
    spec = GraphSpec(
        "llm",
        (TensorSpec("inputs_embeds", "float16", (1, tokens, 16)), past),
        (TensorSpec("logits", "float16", (1, 1, 9)), TensorSpec("present.0.key", "float16", past.shape)),
        (("present.0.key", "past.0.key"),),
    )
    assert not spec.appends
    appending = spec.appending()
    assert appending.appends
    assert appending.output("present.0.key").shape == (1, 2, tokens, 8)
    assert (appending.inputs, appending.in_place) == (spec.inputs, spec.in_place)

import onnx
import pytest
from onnx import TensorProto, helper

from foveate.engines import trt
from foveate.engines.errors import UserError
from foveate.engines.spec import GraphSpec, Symbol, TensorSpec

ROWS = Symbol("rows", 1, 8, 64)


def save(path, nodes, inputs, outputs, initializers=()):
    graph = helper.make_graph(nodes, "g", inputs, outputs, list(initializers))
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 24)], ir_version=10), path)
    return path


def tensor(name, shape, dtype=TensorProto.FLOAT16):
    return helper.make_tensor_value_info(name, dtype, shape)


def test_profiles_come_from_the_spec_and_keep_is_a_shape_input(tmp_path):
    path = save(
        tmp_path / "topk.onnx",
        [
            helper.make_node("Reshape", ["k", "one"], ["k1"]),
            helper.make_node("TopK", ["x", "k1"], ["v", "i"]),
        ],
        [tensor("x", [1, "rows"]), tensor("k", [], TensorProto.INT64)],
        [tensor("v", [1, "kept"])],
        [helper.make_tensor("one", TensorProto.INT64, [1], [1])],
    )
    keep = Symbol("keep", 1, 4, 64)
    spec = GraphSpec(
        "topk",
        (TensorSpec("x", "float16", (1, ROWS)), TensorSpec("k", "int64", (), value=keep)),
        (TensorSpec("v", "float16", (1, keep)),),
    )
    assert len(trt.compile_plan(path, spec)) > 1000


def test_an_input_that_would_be_ignored_is_an_error(tmp_path):
    """TensorRT takes ``nonpad_kv_seqlen``, warns "Unused Input" and attends to everything."""
    shape = [1, 2, "rows", 16]
    path = save(
        tmp_path / "attention.onnx",
        [helper.make_node("Attention", ["q", "k", "v", "", "", "", "n"], ["y"], is_causal=1)],
        [*(tensor(name, shape) for name in "qkv"), tensor("n", [1], TensorProto.INT64)],
        [tensor("y", shape)],
    )
    qkv = tuple(TensorSpec(name, "float16", (1, 2, ROWS, 16)) for name in "qkv")
    spec = GraphSpec(
        "attention", (*qkv, TensorSpec("n", "int64", (1,))), (TensorSpec("y", "float16", (1, 2, ROWS, 16)),)
    )
    with pytest.raises(UserError, match="Unused Input: n"):
        trt.compile_plan(path, spec)


def test_an_operator_it_does_not_know_is_named(tmp_path):
    path = save(
        tmp_path / "unique.onnx",
        [helper.make_node("Unique", ["x"], ["y"])],
        [tensor("x", ["rows"])],
        [tensor("y", ["some"])],
    )
    spec = GraphSpec("unique", (TensorSpec("x", "float16", (ROWS,)),), (TensorSpec("y", "float16", (ROWS,)),))
    with pytest.raises(UserError, match=r"cannot parse unique\.onnx .*Unique"):
        trt.compile_plan(path, spec)


def test_unknown_capability_is_refused(tmp_path):
    path = save(
        tmp_path / "id.onnx",
        [helper.make_node("Neg", ["x"], ["y"])],
        [tensor("x", ["rows"])],
        [tensor("y", ["rows"])],
    )
    spec = GraphSpec("id", (TensorSpec("x", "float16", (ROWS,)),), (TensorSpec("y", "float16", (ROWS,)),))
    with pytest.raises(UserError, match="SM87 is not a target"):
        trt.compile_plan(path, spec, capability="SM87")
    assert "SM86" in trt.capabilities()
    assert len(trt.compile_plan(path, spec, capability="SM86")) > 100

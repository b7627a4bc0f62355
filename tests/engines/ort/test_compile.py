"""Prepacked weights stand in the file where ONNX Runtime's kernels read them, or are prepacked at load."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from foveate.engines.ort import compile as compiler
from foveate.engines.ort.backend import OnnxRuntime
from foveate.engines.spec import GraphSpec, Symbol, TensorSpec


def int4_stack(path: Path, rows: int, columns: list[int]) -> tuple[GraphSpec, list[np.ndarray]]:
    """Write int4 products of one ``x [T, rows]``, with their weights one after another in the data file."""
    random, nodes, tensors, weights = np.random.default_rng(3), [], [], []
    for i, width in enumerate(columns):
        codes = random.integers(-7, 8, (rows, width), np.int8)
        scales = random.uniform(0.01, 0.1, (rows // 128, width)).astype(np.float32)
        weights.append(codes * np.repeat(scales, 128, axis=0))
        packed = ((codes.reshape(-1)[0::2] & 15) | (codes.reshape(-1)[1::2] & 15) << 4).astype(np.uint8)
        tensors.append(
            helper.make_tensor(f"q{i}", TensorProto.INT4, [rows, width], packed.tobytes(), raw=True)
        )
        tensors.append(numpy_helper.from_array(scales, f"s{i}"))
        nodes.append(
            helper.make_node("DequantizeLinear", [f"q{i}", f"s{i}"], [f"w{i}"], axis=0, block_size=128)
        )
        nodes.append(helper.make_node("MatMul", ["x", f"w{i}"], [f"y{i}"]))
    length = Symbol("tokens", 1, 4, 64)
    spec = GraphSpec(
        "stack",
        (TensorSpec("x", "float32", (length, rows)),),
        tuple(TensorSpec(f"y{i}", "float32", (length, width)) for i, width in enumerate(columns)),
    )
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "stack",
        [info("x", TensorProto.FLOAT, ["tokens", rows])],
        [info(f"y{i}", TensorProto.FLOAT, ["tokens", width]) for i, width in enumerate(columns)],
        tensors,
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 24)], ir_version=11), path)
    return spec, weights


@pytest.mark.parametrize(("rows", "columns"), [(128, [128, 64, 128, 256]), (1024, [2048, 4096, 2048])])
def test_prepacked_weights_stand_where_their_kernels_read_them(
    tmp_path: Path, rows: int, columns: list[int]
) -> None:
    """ONNX Runtime 1.31.1 answers garbage when it maps the small ones; 1.32.0 places them right."""
    spec, weights = int4_stack(tmp_path / "stack.onnx", rows, columns)
    workarounds = OnnxRuntime().compile_graph(tmp_path / "stack.onnx", tmp_path / "out", spec, {})
    assert workarounds in ([], ["small weights are prepacked at load"])
    assert not compiler._misplaced(tmp_path / "out" / "stack.onnx")
    prepacked = b"prepacked_0" in (tmp_path / "out" / "stack.onnx").read_bytes()
    assert prepacked is not bool(workarounds)
    engine = OnnxRuntime().load(tmp_path / "out", spec, {})
    x = np.random.default_rng(4).standard_normal((5, rows)).astype(np.float32)
    outputs = engine.run({"x": x})
    for i, weight in enumerate(weights):
        truth = x @ weight
        assert np.abs(outputs[f"y{i}"].numpy() - truth).max() < 0.02 * np.abs(truth).max()


def test_misplaced_weights_are_left_to_be_prepacked_at_load(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, weights = int4_stack(tmp_path / "stack.onnx", 1024, [2048, 2048])
    found = iter([True, True, False])
    monkeypatch.setattr(compiler, "_misplaced", lambda model: next(found))
    workarounds = OnnxRuntime().compile_graph(tmp_path / "stack.onnx", tmp_path / "out", spec, {})
    assert workarounds == ["weights are prepacked at load"]
    assert b"prepacked_0" not in (tmp_path / "out" / "stack.onnx").read_bytes()
    x = np.random.default_rng(4).standard_normal((5, 1024)).astype(np.float32)
    outputs = OnnxRuntime().load(tmp_path / "out", spec, {}).run({"x": x})
    assert np.abs(outputs["y0"].numpy() - x @ weights[0]).max() < 0.02 * np.abs(x @ weights[0]).max()


def test_a_weight_that_ends_off_the_grid_is_prepacked_at_load(tmp_path: Path) -> None:
    rows, columns = 1024, [2049, 2051]  # more than 1 MiB each, and the second one's end is no multiple of 64
    spec, weights = int4_stack(tmp_path / "stack.onnx", rows, columns)
    OnnxRuntime().compile_graph(tmp_path / "stack.onnx", tmp_path / "out", spec, {})
    x = np.random.default_rng(4).standard_normal((5, rows)).astype(np.float32)
    outputs = OnnxRuntime().load(tmp_path / "out", spec, {}).run({"x": x})
    for i, weight in enumerate(weights):
        truth = x @ weight
        assert np.abs(outputs[f"y{i}"].numpy() - truth).max() < 0.02 * np.abs(truth).max()


def test_float32_weights_behind_an_odd_one_are_not_misread(tmp_path: Path) -> None:
    """ONNX Runtime 1.31.1 ended the process here: its float32 kernel loads from aligned addresses."""
    random, info = np.random.default_rng(5), helper.make_tensor_value_info
    bias = random.standard_normal(1037).astype(np.float32)  # 4,148 bytes: no multiple of 64
    weights = [random.standard_normal((48, 48)).astype(np.float32) for _ in range(4)]
    nodes = [helper.make_node("MatMul", ["x", f"w{i}"], [f"y{i}"]) for i in range(4)]
    nodes.append(helper.make_node("Add", ["bias", "z"], ["biased"]))
    outputs = [info(f"y{i}", TensorProto.FLOAT, [48, 48]) for i in range(4)]
    graph = helper.make_graph(
        nodes,
        "odd",
        [info("x", TensorProto.FLOAT, [48, 48]), info("z", TensorProto.FLOAT, [1])],
        [*outputs, info("biased", TensorProto.FLOAT, [1037])],
        [
            numpy_helper.from_array(bias, "bias"),
            *(numpy_helper.from_array(w, f"w{i}") for i, w in enumerate(weights)),
        ],
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 24)], ir_version=11),
        tmp_path / "odd.onnx",
    )
    tensors = tuple(TensorSpec(f"y{i}", "float32", (48, 48)) for i in range(4))
    inputs = TensorSpec("x", "float32", (48, 48)), TensorSpec("z", "float32", (1,))
    spec = GraphSpec("odd", inputs, (*tensors, TensorSpec("biased", "float32", (1037,))))
    OnnxRuntime().compile_graph(tmp_path / "odd.onnx", tmp_path / "out", spec, {})
    assert not compiler._misplaced(tmp_path / "out" / "odd.onnx")
    x = random.standard_normal((48, 48)).astype(np.float32)
    answers = OnnxRuntime().load(tmp_path / "out", spec, {}).run({"x": x, "z": np.zeros(1, np.float32)})
    for i, weight in enumerate(weights):
        np.testing.assert_allclose(answers[f"y{i}"].numpy(), x @ weight, rtol=1e-4, atol=1e-4)

"""Rounding of products' inputs as a scheme states it, against the graph that it writes, in ONNX Runtime.

A row's result must not depend on the other rows of the call.
"""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch

from foveate.calib import schemes
from foveate.calib.schemes.graph_site import Site
from foveate.calib.schemes.quantized import Form, PartName
from foveate.calib.statistics import InputStatistics
from foveate.engines.ort.backend import onnxruntime

ROWS, INPUTS, OUTPUTS = 6, 32, 16
DYNAMIC, STATIC = Form("float32", True, False), Form("float32", False, False)


def product(dtype: str) -> ir.Model:
    kind = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    info = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("MatMul", ["x", "w"], ["y"], "product")],
        "g",
        [info("x", kind, ["rows", INPUTS])],
        [info("y", kind, ["rows", OUTPUTS])],
        [onnx.helper.make_tensor("w", kind, [INPUTS, OUTPUTS], np.zeros(INPUTS * OUTPUTS))],
    )
    opset = onnx.helper.make_opsetid("", 21)
    return ir.serde.deserialize_model(onnx.helper.make_model(graph, opset_imports=[opset], ir_version=10))


def placed(scheme: str, form: Form, weight: np.ndarray, seen: InputStatistics) -> ir.Model:
    """Return the product with ``weight`` in that scheme."""
    model, encoded = product(form.dtype), schemes.load(scheme).quantize(weight)

    def find(name: PartName) -> ir.Value | None:
        part = encoded.part(name)
        if part is None:
            return None
        label = f"w.{name.label}"
        if part.dtype == ir.DataType.INT4:
            packed = part.data.view(np.uint8)
            tensor = ir.PackedTensor(packed, part.dtype, shape=ir.Shape(part.shape), name=label)
        else:
            tensor = ir.Tensor(part.data.reshape(part.shape), dtype=part.dtype, name=label)
        value = ir.Value(
            name=tensor.name, shape=tensor.shape, type=ir.TensorType(tensor.dtype), const_value=tensor
        )
        model.graph.register_initializer(value)
        return value

    schemes.load(scheme).place(Site(model.graph, model.graph.initializers["w"], form, find, seen, {}))
    del model.graph.initializers["w"]
    return model


@pytest.mark.parametrize(
    ("scheme", "form"),
    [
        ("int8", DYNAMIC),
        ("int8", STATIC),
        ("int8", Form("float16", dynamic=False, zero_points=False)),
        ("fp8", Form("float16", dynamic=False, zero_points=False)),
    ],
)
def test_products_read_what_the_scheme_says(scheme, form):
    rng = np.random.default_rng()
    x = (rng.standard_normal((ROWS, INPUTS)) * 10.0 ** rng.uniform(-2, 2, (ROWS, 1))).astype(form.dtype)
    weight = rng.standard_normal((INPUTS, OUTPUTS)).astype(np.float32)
    size = np.abs(x.astype(np.float32))
    seen = InputStatistics(size.max(0), size.mean(0), float(size.max()) / 2)  # the largest is clipped
    model = placed(scheme, form, weight, seen)
    session = onnxruntime.InferenceSession(ir.serde.serialize_model(model).SerializeToString())
    (got,) = session.run(None, {"x": x})

    encoded = schemes.load(scheme).quantize(weight)
    encoded = encoded.narrow() if form.dynamic else encoded
    rounded = schemes.load(scheme).rounded(torch.from_numpy(x).float(), form, seen).numpy()
    expected = rounded @ encoded.dequantize()
    # A row at a time, since rows differ by four orders of magnitude. Without rounding, some are off by more
    # than a hundredth.
    tolerance = (2e-3 if form.dtype == "float16" else 1e-5) * np.abs(expected).max(axis=1, keepdims=True)
    assert (np.abs(got - expected) <= tolerance + 1e-6).all()
    exact = x.astype(np.float32) @ encoded.dequantize()
    assert not (np.abs(exact - expected) <= tolerance + 1e-6).all()


def session(scheme: str, form: Form, level: int, weight: np.ndarray) -> onnxruntime.InferenceSession:
    """Return the product with ``weight``, compiled as ``engines.ort.compile`` does at an accuracy level."""
    seen = InputStatistics(np.full(len(weight), 4.0), np.ones(len(weight)), 4.0)
    model = placed(scheme, form, weight, seen)
    config = onnxruntime.SessionOptions()
    config.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", str(level))
    return onnxruntime.InferenceSession(ir.serde.serialize_model(model).SerializeToString(), config)


def uneven(rng: np.random.Generator, rows: int, inputs: int) -> np.ndarray:
    """Return rows whose sizes differ, and of which some are all positive and some all negative."""
    x = rng.standard_normal((rows, inputs)) * 4.0 ** rng.uniform(-1, 1, (rows, 1))
    sides = rng.integers(0, 3, (rows, 1))
    return np.select([sides == 0, sides == 1], [np.abs(x), -np.abs(x)], x)


@pytest.mark.parametrize("inputs", [32, 256, 1000])
def test_a_row_alone_is_the_same_row_among_others(inputs, monkeypatch):
    """Bit for bit, at every number of rows: integer sums are exact, and the rest is computed by element."""
    monkeypatch.setattr(f"{__name__}.INPUTS", inputs)
    rng = np.random.default_rng(inputs)
    x = uneven(rng, 65, inputs).astype(np.float32)
    x[3] = 0
    run = session("int8", DYNAMIC, 4, rng.standard_normal((inputs, OUTPUTS)).astype(np.float32))
    alone = np.concatenate([run.run(None, {"x": row[None]})[0] for row in x])
    for rows in (2, 3, 4, 7, 8, 9, 16, 33, 65):
        np.testing.assert_array_equal(run.run(None, {"x": x[:rows]})[0], alone[:rows])
        np.testing.assert_array_equal(run.run(None, {"x": x[-rows:]})[0], alone[-rows:])


@pytest.mark.parametrize("rows", [2, 5, 8, 33])
@pytest.mark.parametrize(
    ("scheme", "form", "level"),
    [
        *[("int8", DYNAMIC, 4), ("int8", STATIC, 4), ("int8", Form("float16", False, False), 4)],
        ("fp8", Form("float16", False, False), 4),
        *[("int4", Form("float32", True, zeros), level) for zeros in (True, False) for level in (1, 4)],
        *[("int4", Form("float16", False, False), level) for level in (1, 4)],
    ],
)
def test_a_row_is_the_same_whatever_the_other_rows_hold(scheme, form, level, rows, monkeypatch):
    """Bit for bit, in every form, where the number of rows and the row's place stay.

    Others than int8 of the dialect ``ort`` sum in floating point, and a kernel for another number of rows has
    another order of summation.
    """
    monkeypatch.setattr(f"{__name__}.INPUTS", 256)
    rng = np.random.default_rng(rows)
    run = session(scheme, form, level, rng.standard_normal((INPUTS, OUTPUTS)).astype(np.float32))
    others = np.abs(uneven(rng, rows, INPUTS))
    for place in (0, rows - 1):
        own = rng.standard_normal(INPUTS)
        found = []
        for factor in (1, -16):
            x = factor * others
            x[place] = own
            found += run.run(None, {"x": x.astype(form.dtype)})
        np.testing.assert_array_equal(found[0][place], found[1][place])
        assert (found[0] != found[1]).any()


@pytest.mark.parametrize(("scheme", "form"), [("int8", DYNAMIC), ("int8", STATIC), ("fp8", STATIC)])
def test_torch_rounds_a_row_alone_as_among_others(scheme, form):
    x = torch.from_numpy(uneven(np.random.default_rng(0), 40, 96)).float()
    seen = InputStatistics(np.full(96, 4.0), np.ones(96), 4.0)

    def rounded(rows: torch.Tensor) -> torch.Tensor:
        return schemes.load(scheme).rounded(rows, form, seen)

    assert torch.equal(rounded(x), torch.cat([rounded(row[None]) for row in x]))

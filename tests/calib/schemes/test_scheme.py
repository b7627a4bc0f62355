"""Rounding of products' inputs as a scheme states it, against the graph that it writes, in ONNX Runtime."""

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

    def find(name: PartName) -> ir.Value:
        part = encoded.part(name)
        tensor = ir.Tensor(part.data.reshape(part.shape), dtype=part.dtype, name=f"w.{name.label}")
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
        ("int8", Form("float32", dynamic=True, zero_points=False)),
        ("int8", Form("float32", dynamic=False, zero_points=False)),
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

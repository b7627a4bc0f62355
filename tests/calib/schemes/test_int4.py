import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from foveate.calib.schemes import int4
from foveate.calib.schemes.quantized import PartKind, PartName
from foveate.engines.ort.backend import onnxruntime

VALUES, SCALES = PartName(PartKind.VALUES, "int4"), PartName(PartKind.SCALES, "float32")


@pytest.mark.parametrize("inputs", [32, 64, 128, 384])
def test_error_is_at_most_half_a_step(inputs):
    weight = np.random.default_rng(inputs).standard_normal((inputs, 10)).astype(np.float32)
    found = int4.SCHEME.quantize(weight)
    assert found.part(VALUES).data.size == weight.size // 2
    assert found.scales.shape == (inputs // int4.block_size(inputs), 10)
    error = np.abs(found.dequantize() - weight)
    step = np.repeat(found.scales, int4.block_size(inputs), axis=0)
    assert (error <= 0.5 * step * (1 + 1e-2)).all()  # 1e-2: the scale itself is rounded to float16


@pytest.mark.parametrize("outputs", [6, 5])
def test_onnx_dequantizes_to_the_same_weights(outputs):
    weight = np.random.default_rng(0).standard_normal((256, outputs)).astype(np.float32)
    found = int4.SCHEME.quantize(weight)
    raw, scales = found.part(VALUES).data.tobytes(), found.part(SCALES).data
    values = TensorProto(name="q", data_type=TensorProto.INT4, dims=weight.shape, raw_data=raw)
    node = helper.make_node("DequantizeLinear", ["q", "s"], ["y"], axis=0, block_size=128)
    graph = helper.make_graph(
        [node],
        "g",
        [],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, weight.shape)],
        [values, onnx.numpy_helper.from_array(scales, "s")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 24)], ir_version=10)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    np.testing.assert_array_equal(session.run(None, {})[0], found.dequantize())


def test_zero_blocks_stay_zero():
    weight = np.zeros((128, 2), np.float32)
    np.testing.assert_array_equal(int4.SCHEME.quantize(weight).dequantize(), weight)


def test_scales_survive_float16():
    weight = np.random.default_rng(1).standard_normal((128, 4)).astype(np.float32)
    scales = int4.SCHEME.quantize(weight).scales
    np.testing.assert_array_equal(scales.astype(np.float16).astype(np.float32), scales)


@pytest.mark.parametrize("shape", [(31, 2), (48, 2)])
def test_unpackable_shapes_are_refused(shape):
    with pytest.raises(ValueError, match="cannot pack"):
        int4.SCHEME.quantize(np.ones(shape, np.float32))

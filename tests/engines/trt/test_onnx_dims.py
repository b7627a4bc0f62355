import onnx
import pytest
from onnx import TensorProto, helper

from foveate.engines.trt.onnx_dims import fix_dimensions


def model() -> onnx.ModelProto:
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["m"]), helper.make_node("Identity", ["m"], ["y"])],
        "g" * 200,  # lengths of more than one byte
        [value("x", TensorProto.FLOAT, ["cache", 3, "other"])],
        [value("y", TensorProto.FLOAT, ["cache", 3, "other"])],
        [helper.make_tensor("w", TensorProto.FLOAT, [2], [1.0, 2.0])],
        value_info=[value("m", TensorProto.FLOAT, ["cache", 3, "other"])],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 24)], doc_string="kept")


def test_named_dimensions_become_numbers_and_nothing_else_changes():
    fixed = onnx.load_from_string(fix_dimensions(model().SerializeToString(), {"cache": 70_000}))
    expected = model()
    for info in (*expected.graph.input, *expected.graph.output, *expected.graph.value_info):
        info.type.tensor_type.shape.dim[0].dim_value = 70_000
    assert fixed == expected


def test_unknown_names_change_nothing():
    assert onnx.load_from_string(fix_dimensions(model().SerializeToString(), {"batch": 2})) == model()


@pytest.mark.parametrize("cut", [1, 40, 150])
def test_a_cut_file_is_an_error(cut):
    with pytest.raises(ValueError, match=r"cut short|not an ONNX"):
        fix_dimensions(model().SerializeToString()[:-cut], {"cache": 2})

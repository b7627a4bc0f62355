"""README's promise of bundles: no plugin and no custom operator, in any dialect and precision."""

from __future__ import annotations

from collections.abc import Iterator

import onnx
import pytest

from foveate.export import lowering, methods
from foveate.export.build import build
from foveate.export.bundling.precision import Precision, choices, dialects
from foveate.export.calibration.calibrate import Calibration
from foveate.export.models import llava

PRECISIONS = [*map(Precision, choices()), Precision("int4", head="int8", vision="int8", prefill="int8")]


def nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """All nodes, those of subgraphs as well."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                yield from nodes(inner)


@pytest.fixture(scope="module")
def tiny():
    """Traced once for all precisions."""
    return llava.tiny(layers=2)


@pytest.mark.parametrize("precision", PRECISIONS, ids=str)
def test_every_operator_is_one_of_standard_onnx(tiny, tmp_path, precision):
    calibration = Calibration("scenes", 1) if {"int8", "fp8"} & set(precision.schemes) else None
    asked = ["ort"] if precision.vision else None  # elsewhere nothing calibrates the encoder
    names, _ = dialects(precision, asked, calibration is not None)
    method = methods.load("none", {})  # every method in fp16: test_graphs.py
    build(tiny, method, tmp_path / "b", precision=precision, dialects=names, calibration=calibration)
    files = sorted((tmp_path / "b").glob("*.onnx"))
    assert len(files) >= 2 * len(names)
    for file in files:
        model = onnx.load(file, load_external_data=False)
        assert not model.functions and {opset.domain for opset in model.opset_import} == {""}
        version = model.opset_import[0].version
        for node in nodes(model.graph):
            assert node.domain == "", f"{file.name}: {node.domain} {node.op_type}"
            assert onnx.defs.has(node.op_type, version), f"{file.name}: {node.op_type}"


def test_no_dialect_is_forgotten():
    """Each of them takes some precision of the test above."""
    found = {name for precision in PRECISIONS for name in dialects(precision, None, True)[0]}
    assert found == set(lowering.names())

"""Every method's graphs on the tiny model, in every dialect.

They are standard ONNX, ONNX Runtime answers as torch does, and TensorRT-RTX compiles them. The graphs of most
methods are slow tests: ``tests/helpers/often.py`` says which ones are in every run.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from often import METHODS, often

from foveate.engines.ort.backend import onnxruntime
from foveate.engines.trt import backend as trt
from foveate.export import lowering, methods
from foveate.export.lowering import primitive
from foveate.runtime.bundle.manifest import Manifest

VARIANTS = {
    **{name: (name, {}) for name in methods.names()},
    "trim by itself": ("trim", {"auto": "true"}),
    "sppruner with CLIP": ("sppruner", {"relevance": "clip"}),
    "sppruner with context": ("sppruner", {"mu": "0.5"}),
    "SparseVLM+": ("sparsevlm", {"version": "2"}),
    "vscan in two stages": ("vscan+pyramiddrop", {"pyramiddrop.layers": "2"}),
}
OFTEN = (*METHODS, "sppruner with CLIP", "vscan in two stages")
each_variant = pytest.mark.parametrize("variant", often(VARIANTS, OFTEN))
TOLERANCE = {"float32": 2e-4, "float16": 2e-2}  # largest error over largest value; scores and kept sets aside
COMPILED: dict[str, int] = {}
DOCUMENTED: dict[str, list[str]] = {}
TYPES = {
    1: "FP32",
    10: "FP16",
    7: "INT64",
    6: "INT32",
    9: "BOOL",
}  # of onnx.TensorProto -> of TensorRT's table


@pytest.fixture(scope="module")
def bundles(method_bundle):
    def get(variant: str, precision: str) -> Path:
        method, options = VARIANTS[variant]
        return method_bundle(method, precision, **options)

    return get


def manifest(bundle: Path) -> dict:
    return json.loads((bundle / "bundle.json").read_text())


def subgraphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """Yield the subgraphs of its nodes, and those inside them."""
    for attribute in (attribute for node in graph.node for attribute in node.attribute):
        if attribute.type == onnx.AttributeProto.GRAPH:
            yield attribute.g
            yield from subgraphs(attribute.g)


def names_in(graph: onnx.GraphProto) -> Iterator[str]:
    """Yield the name of every value that is given or computed."""
    for each in (graph, *subgraphs(graph)):
        yield from (value.name for value in (*each.input, *each.initializer))
        yield from (name for node in each.node for name in node.output if name)


@each_variant
def test_graphs_are_standard_onnx(bundles, variant):
    bundle = bundles(variant, "fp16")
    for dialect in lowering.names():
        for file in manifest(bundle)["dialects"][dialect]["files"].values():
            onnx.checker.check_model(bundle / file, full_check=True)
            model = onnx.load(bundle / file, load_external_data=False)
            opset = 20 if dialect == "primitive" else 24
            assert [(o.domain, o.version) for o in model.opset_import] == [("", opset)]
            assert not model.functions and not list(model.metadata_props)
            names = list(names_in(model.graph))
            assert len(names) == len(set(names))
            assert not any(inner.initializer for inner in subgraphs(model.graph))
            # ONNX Runtime before 1.32 takes the sign of an int64 from its lower 32 bits
            graphs = (model.graph, *subgraphs(model.graph))
            assert not [node.name for graph in graphs for node in graph.node if node.op_type == "Sign"]


@pytest.mark.parametrize("dialect", lowering.names())
@pytest.mark.parametrize(
    ("variant", "precision"),
    often([*((v, "fp16") for v in VARIANTS), ("sppruner", "fp32"), ("sppruner", "int4")], OFTEN),
)
def test_onnx_runtime_answers_as_recorded_by_torch(bundles, variant, precision, dialect):
    bundle = bundles(variant, precision)
    entry = manifest(bundle)["dialects"][dialect]
    golden = np.load(bundle / "golden.npz")
    for name, file in entry["files"].items():
        if name.startswith(
            "llm"
        ):  # teacher-forced over many rows: tests/export/networks/test_decoder.py and `foveate check`
            continue
        session = open_session(bundle / file)
        feeds = {i.name: golden[f"{name}.in.{i.name}"] for i in session.get_inputs()}
        feeds = {k: x.astype(entry["dtype"]) if x.dtype.kind == "f" else x for k, x in feeds.items()}
        answers = dict(zip((o.name for o in session.get_outputs()), session.run(None, feeds), strict=True))
        for output, answer in answers.items():
            truth = golden[f"{name}.out.{output}"]
            if truth.dtype.kind == "i":
                agreement = np.mean(np.isin(answer, truth))
                assert agreement == 1 if entry["dtype"] == "float32" else agreement >= 0.8, (
                    output,
                    agreement,
                )
            elif (
                output != "tokens" or entry["dtype"] == "float32"
            ):  # one other pick moves every row behind it
                error = np.abs(answer.astype(np.float32) - truth).max()
                assert error <= TOLERANCE[entry["dtype"]] * np.abs(truth).max(), (name, output)


def open_session(path: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(path), options)


def test_a_method_before_the_projector_brings_it_along(bundles):
    bundle = bundles("visionzip", "fp16")
    graphs = {
        name: onnx.load(bundle / file, load_external_data=False).graph
        for name, file in manifest(bundle)["dialects"]["native"]["files"].items()
    }
    weights = {name: {tensor.name for tensor in graph.initializer} for name, graph in graphs.items()}
    assert "projected" not in {output.name for output in graphs["vision_encoder"].output}
    assert not any("projector" in name for name in weights["vision_encoder"])
    assert {name for name in weights["pruner"] if "projector" in name} == {
        f"vision_encoder.projector.linear_{i}.{kind}" for i in (1, 2) for kind in ("weight", "bias")
    }


@pytest.mark.parametrize("dialect", ["native", "primitive"])
@each_variant
def test_tensorrt_rtx_compiles_every_distinct_graph(bundles, variant, dialect):
    bundle = bundles(variant, "fp16")
    data = Manifest.from_json(manifest(bundle))
    for name, file in data.dialects[dialect].files.items():
        digest = hashlib.sha256((bundle / file).read_bytes()).hexdigest()
        if digest not in COMPILED:
            COMPILED[digest] = len(trt.compile_plan(bundle / file, data.spec(name, dialect), max_context=128))
        assert COMPILED[digest] > 1000


@each_variant
def test_primitive_graphs_hold_to_what_tensorrt_10_3_documents(bundles, variant):
    bundle = bundles(variant, "fp16")
    for file in manifest(bundle)["dialects"]["primitive"]["files"].values():
        digest = hashlib.sha256((bundle / file).read_bytes()).hexdigest()
        if digest not in DOCUMENTED:
            DOCUMENTED[digest] = list(undocumented(bundle / file))
        assert not DOCUMENTED[digest], file


def undocumented(path: Path) -> Iterator[str]:
    """Yield nodes that TensorRT 10.3 does not document.

    These have other types, are a TopK without an order, or have axes that are no constants.
    """
    model = onnx.shape_inference.infer_shapes(onnx.load(path, load_external_data=False))

    def walk(graph: onnx.GraphProto, outer: dict[str, int], constants: set[str]) -> Iterator[str]:
        values = (*graph.input, *graph.value_info, *graph.output)
        types = outer | {value.name: value.type.tensor_type.elem_type for value in values}
        types |= {tensor.name: tensor.data_type for tensor in graph.initializer}
        constants = constants | {tensor.name for tensor in graph.initializer}
        for node in graph.node:
            documented = primitive.OPERATORS[node.op_type]
            data = node.input[1 if node.op_type == "Where" else 0]
            if node.op_type != "Loop" and TYPES[types[data]] not in documented["types"].split():
                yield f"{node.op_type} {node.name} of {TYPES[types[data]]}"
            axes = node.input[-1]
            if "`ax" in documented["restrictions"] and len(node.input) > 1 and axes not in constants:
                yield f"{node.op_type} {node.name}: {documented['restrictions']}"
            for attribute in node.attribute:
                if attribute.name == "sorted" and not attribute.i:
                    yield f"{node.op_type} {node.name}: {documented['restrictions']}"
                if attribute.HasField("g"):
                    yield from walk(attribute.g, types, constants)

    return walk(model.graph, {}, set())

"""Tiers 1 and 2: every method's graphs, tiny, in every dialect: standard ONNX, ONNX Runtime equals torch, and
TensorRT-RTX compiles each distinct one."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from foveate.engines import trt
from foveate.engines.spec import GraphSpec
from foveate.export import lower, methods
from foveate.export.build import build
from foveate.export.models import llava

VARIANTS = {
    **{name: (name, {}) for name in methods.names()},
    "trim by itself": ("trim", {"auto": "true"}),
    "sppruner with CLIP": ("sppruner", {"relevance": "clip"}),
    "sppruner with context": ("sppruner", {"mu": "0.5"}),
    "SparseVLM+": ("sparsevlm", {"version": "2"}),
    "vscan in two stages": ("vscan+pyramiddrop", {"pyramiddrop.layers": "2"}),
}
TOLERANCE = {"float32": 2e-4, "float16": 2e-2}  # largest error over largest value; scores and kept sets aside
COMPILED: dict[str, int] = {}
PARTS = llava.tiny(layers=4)  # one for all: what variants share is traced once


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    """Built once per variant and precision, when first asked for."""
    root = tmp_path_factory.mktemp("bundles")

    def get(variant: str, precision: str) -> Path:
        out = root / f"{variant}.{precision}"
        if not out.exists():
            name, options = VARIANTS[variant]
            build(PARTS, methods.load(name, options), out, precision=precision)
        return out

    return get


def manifest(bundle: Path) -> dict:
    return json.loads((bundle / "bundle.json").read_text())


@pytest.mark.parametrize("variant", VARIANTS)
def test_graphs_are_standard_onnx(bundles, variant):
    bundle = bundles(variant, "fp16")
    for dialect in lower.names():
        for file in manifest(bundle)["dialects"][dialect]["files"].values():
            onnx.checker.check_model(bundle / file, full_check=True)
            model = onnx.load(bundle / file, load_external_data=False)
            assert [(o.domain, o.version) for o in model.opset_import] == [("", 24)]
            assert not model.functions and not list(model.metadata_props)


@pytest.mark.parametrize("dialect", lower.names())
@pytest.mark.parametrize(
    ("variant", "precision"), [*((v, "fp16") for v in VARIANTS), ("sppruner", "fp32"), ("sppruner", "int4")]
)
def test_onnx_runtime_answers_as_recorded_by_torch(bundles, variant, precision, dialect):
    bundle = bundles(variant, precision)
    entry = manifest(bundle)["dialects"][dialect]
    golden = np.load(bundle / "golden.npz")
    for name, file in entry["files"].items():
        if name.startswith(
            "llm"
        ):  # teacher-forced over many rows: tests/export/test_decoder.py and `foveate check`
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


@pytest.mark.parametrize("variant", VARIANTS)
def test_tensorrt_rtx_compiles_every_distinct_graph(bundles, variant):
    bundle = bundles(variant, "fp16")
    data = manifest(bundle)
    for name, file in data["dialects"]["native"]["files"].items():
        digest = hashlib.sha256((bundle / file).read_bytes()).hexdigest()
        if digest not in COMPILED:
            spec = GraphSpec.from_json(data["graphs"][name]).typed("float16")
            COMPILED[digest] = len(trt.compile_plan(bundle / file, spec, max_context=128))
        assert COMPILED[digest] > 1000

"""Two forms of one language model in a bundle: int8 for prompts, int4 for decoding, over one cache."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from foveate.engines.prefill_switch import MANY, ByRows
from foveate.export.build import build
from foveate.export.bundling.precision import Precision
from foveate.export.methods import load as load_method
from foveate.export.models import llava
from foveate.runtime.bundle.compiled import choose, load_engine, load_engines
from foveate.runtime.bundle.loading import load
from foveate.runtime.compiling.compile import compile_bundle
from foveate.runtime.compiling.self_test import replay

PRECISION = Precision("int4", head="int4", prefill="int8")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("prefill") / "b"
    build(
        llava.tiny(hidden=256),
        load_method("fastv", {"layer": "1"}),
        out,
        precision=PRECISION,
        dialects=["ort"],
    )
    compile_bundle(out)
    return out


def feeds(engine, rows: int, seed: int = 0, start: int = 0):
    given = {}
    for tensor in engine.spec.inputs:
        if tensor.name.startswith("past"):
            given[tensor.name] = engine.allocate(tensor.name, {"cache": 64})
    given["inputs_embeds"] = np.random.default_rng(seed).standard_normal((1, rows, 256), np.float32)
    return given | {"position_ids": np.arange(start, start + rows)[None], "write_index": np.array([start])}


def places(model: onnx.ModelProto) -> dict[str, list[tuple[str, str]]]:
    """The place where each initializer is stored."""
    return {
        t.name: [(e.key, e.value) for e in t.external_data]
        for t in model.graph.initializer
        if t.external_data
    }


def test_prompts_are_computed_in_int8_and_steps_in_int4(bundle):
    opened = load(bundle)
    engine = load_engine(opened, choose(opened), "llm.0", {})
    assert isinstance(engine, ByRows)
    alone = {}
    for name, file in (("few", "llm.0.ort.onnx"), ("many", "llm.0.prefill.ort.onnx")):
        operators = {node.op_type for node in onnx.load(bundle / file, load_external_data=False).graph.node}
        assert ("QuantizeLinear" in operators) == (name == "many")
        alone[name] = getattr(engine, f"_{name}")
    for rows, name in ((1, "few"), (MANY - 1, "few"), (MANY, "many"), (40, "many")):
        got = engine.run(feeds(engine, rows))["hidden"].numpy()
        np.testing.assert_array_equal(got, alone[name].run(feeds(engine, rows))["hidden"].numpy())


def test_in_llm_pruners_see_prompts_alone_and_are_in_int8(bundle):
    assert not (bundle / "pruner.0.prefill.ort.onnx").exists()
    pruner = onnx.load(bundle / "pruner.0.ort.onnx", load_external_data=False)
    assert "QuantizeLinear" in {node.op_type for node in pruner.graph.node}
    prompts = places(onnx.load(bundle / "llm.0.prefill.ort.onnx", load_external_data=False))
    own = places(pruner)
    integers = [name for name in own if "self_attn.k_proj.weight.int" in name]
    assert integers
    assert all(own[name] == prompts[name] for name in integers)


def test_both_forms_are_one_model(bundle):
    """The int8 weights are made from int4's numbers: only the rounding of int8 differs."""
    opened = load(bundle)
    engine = load_engine(opened, choose(opened), "llm.0", {})
    few, many = (each.run(feeds(engine, 20))["hidden"].numpy() for each in (engine._few, engine._many))
    assert 0 < np.linalg.norm(few - many) / np.linalg.norm(few) < 0.05


@pytest.mark.parametrize("rows", [2, MANY, 20])
def test_a_row_is_the_same_whatever_later_rows_hold(bundle, rows):
    """Bit for bit, in both forms, in the answer and in the cache."""
    opened = load(bundle)
    engine = load_engine(opened, choose(opened), "llm.0", {})
    given, changed = feeds(engine, rows), feeds(engine, rows)
    for each, last in ((given, 1), (changed, -50)):
        each["inputs_embeds"] = np.abs(each["inputs_embeds"])
        each["inputs_embeds"][:, -1] *= last
    first, second = engine.run(given), engine.run(changed)
    written = [name for name in given if name.startswith("past")]
    assert written
    pairs = [(first["hidden"].numpy()[0], second["hidden"].numpy()[0])]
    pairs += [
        (given[name].numpy()[0].swapaxes(0, 1), changed[name].numpy()[0].swapaxes(0, 1)) for name in written
    ]
    for before, after in pairs:
        np.testing.assert_array_equal(after[: rows - 1], before[: rows - 1])
        assert (after[rows - 1] != before[rows - 1]).any()


def test_one_cache_serves_both(bundle):
    opened = load(bundle)
    engine = load_engine(opened, choose(opened), "llm.0", {})
    whole = feeds(engine, 21, seed=3)
    expected = engine.run(whole)["hidden"].numpy()[:, -1].copy()
    given = feeds(engine, 21, seed=3)
    rows = given["inputs_embeds"]
    prompt = given | {"inputs_embeds": rows[:, :20], "position_ids": np.arange(20)[None]}
    engine.run(prompt)
    step = {"inputs_embeds": rows[:, 20:], "position_ids": np.array([[20]]), "write_index": np.array([20])}
    got = engine.run(given | step)["hidden"].numpy()[:, -1]
    assert np.linalg.norm(got - expected) / np.linalg.norm(expected) < 0.05
    stale = engine.run(feeds(engine, 21) | step)["hidden"].numpy()[:, -1]
    assert np.linalg.norm(stale - expected) / np.linalg.norm(expected) > 0.1


def test_the_check_replays_both(bundle):
    opened = load(bundle)
    plan = choose(opened)
    assert {"llm.0.prefill.onnx", "llm.1.prefill.onnx"} <= plan.files.keys()
    assert {"llm.0.prefill.ort.onnx", "llm.1.prefill.ort.onnx"} <= plan.sources.keys()
    assert all(finding.ok for finding in replay(opened, plan))
    assert not isinstance(load_engines(opened, plan, {})["vision_encoder"], ByRows)


def test_weights_that_both_need_are_stored_once(bundle):
    shared = onnx.load(bundle / "llm.0.prefill.ort.onnx", load_external_data=False)
    own = onnx.load(bundle / "llm.0.ort.onnx", load_external_data=False)

    name = "llm.layers.0.input_layernorm.weight"
    assert places(shared)[name] == places(own)[name]

"""Input and output of TensorRT for RTX's builder, which needs no GPU."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

from foveate.engines.engine import check_feeds
from foveate.engines.errors import RefusedError, UserError
from foveate.engines.spec import GraphSpec, Symbol, TensorSpec
from foveate.engines.trt import backend as trt
from foveate.engines.trt import builder as trt_build
from foveate.engines.trt import logger, plan_file, profiles

ROWS = Symbol("rows", 1, 8, 64)
OPTIONS = {"max_context": 64}


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


def llm_spec() -> GraphSpec:
    tokens, cache = Symbol("tokens", 1, 192, 4096), Symbol("cache", 1, 1024, 4096)
    past = TensorSpec("past.0.key", "float16", (1, 2, cache, 8))
    return GraphSpec(
        "llm",
        (TensorSpec("inputs_embeds", "float16", (1, tokens, 16)), past),
        (TensorSpec("logits", "float16", (1, 1, 9)), TensorSpec("present.0.key", "float16", past.shape)),
        (("present.0.key", "past.0.key"),),
    )


def test_the_cache_is_settled_and_decoding_has_a_profile_of_its_own() -> None:
    spec = profiles.settled(llm_spec(), 128)
    assert spec.input("past.0.key").shape == spec.output("present.0.key").shape == (1, 2, 128, 8)
    prefill, decode = profiles.profiles(spec)
    assert prefill == {"inputs_embeds": [[1, 1, 16], [1, 128, 16], [1, 128, 16]]}
    assert decode == {"inputs_embeds": [[1, 1, 16]] * 3}


def test_budgets_are_capped_at_what_topk_can_pick() -> None:
    keep = Symbol("keep", 1, 1000, 5000)
    given = (TensorSpec("keep", "int64", (), keep),)
    spec = GraphSpec("pruner", given, (TensorSpec("tokens", "float16", (1, keep, 8)),))
    settled = profiles.settled(spec, 64)
    assert settled.input("keep").value.max == settled.output("tokens").shape[1].max == 3840
    assert profiles.profiles(settled) == [{"keep": [[1], [1000], [3840]]}]


def test_a_prompt_beyond_the_profile_is_refused_before_anything_is_launched() -> None:
    class Rows:
        dtype, shape = "float16", (1, 129, 16)

    class Past:
        dtype, shape = "float16", (1, 2, 128, 8)

    spec = profiles.settled(llm_spec(), 128)
    with pytest.raises(
        ValueError, match=r"inputs_embeds has shape \(1, 129, 16\) \| expected .*tokens:1\.\.128"
    ):
        check_feeds(spec, {"inputs_embeds": Rows(), "past.0.key": Past()})


def test_the_likeliest_tokens_are_outputs_where_that_is_asked_for(
    rtx: trt.TensorRT, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save(
        tmp_path / "head.onnx",
        [helper.make_node("Neg", ["x"], ["logits"])],
        [tensor("x", [1, 1, 90])],
        [tensor("logits", [1, 1, 90])],
    )
    one = tuple(TensorSpec(name, "float16", (1, 1, 90)) for name in ("x", "logits"))
    spec, serialize, found = GraphSpec("head", one[:1], one[1:]), plan_file.serialize, []

    def watched(module: Any, builder: Any, network: Any, *rest: Any) -> bool:
        outputs = map(network.get_output, range(network.num_outputs))
        found.append([(each.name, each.dtype.name, tuple(each.shape)) for each in outputs])
        return serialize(module, builder, network, *rest)

    monkeypatch.setattr(trt_build.plan_file, "serialize", watched)
    for options in (OPTIONS, {**OPTIONS, "device_sampling": True}):
        assert trt_build.build(rtx.trt, path, spec, options, tmp_path / "head.plan")["bytes"] > 100
        told = profiles.compiled(spec, options).outputs
        assert [(name, shape) for name, _, shape in found[-1]] == [(each.name, each.shape) for each in told]
    assert found[0] == [("logits", "HALF", (1, 1, 90))]
    assert found[1][1:] == [("top_values", "HALF", (1, 1, 64)), ("top_ids", "INT32", (1, 1, 64))]


@pytest.mark.filterwarnings(
    "ignore::DeprecationWarning"
)  # TensorRT-RTX has the calls, and does nothing in them
def test_a_timing_cache_is_made_used_and_begun_anew_when_it_is_damaged(
    rtx: trt.TensorRT, negation: tuple[Path, GraphSpec], tmp_path: Path
) -> None:
    cache = tmp_path / "timings.cache"

    def notes() -> list[str]:
        return trt_build.build(rtx.trt, *negation, OPTIONS, tmp_path / "negation.plan", cache)["notes"]

    assert notes() == []
    assert cache.is_file()
    assert notes() == []
    cache.write_bytes(b"nonsense" * 40)
    (note,) = notes()
    assert "timings.cache is damaged" in note
    assert notes() == []


@pytest.mark.parametrize("terminal", [False, True])
def test_progress_while_building(
    rtx: trt.TensorRT, terminal: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [0.0]
    monkeypatch.setattr(logger.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    monitor = logger.monitor(rtx.trt)
    monitor.phase_start("Tactics", None, 40)
    for step in range(30):
        now[0] += 1
        assert monitor.step_complete("Tactics", step)
    monitor.phase_finish("Tactics")
    said = capsys.readouterr().err
    if terminal:
        assert said.count("\r\033[K") == 31 and "\n" not in said and "Tactics 30/40" in said
    else:
        assert said == "Tactics 10/40\nTactics 20/40\nTactics 30/40\n"


def test_the_builder_tells_its_progress(rtx: trt.TensorRT, negation: tuple[Path, GraphSpec]) -> None:
    """The monitor is TensorRT's own: it is called while a network is built."""
    config = trt_build._config(rtx.trt, rtx.trt.Builder(logger.log(rtx.trt)), OPTIONS)
    assert isinstance(config.progress_monitor, rtx.trt.IProgressMonitor)


@pytest.mark.parametrize("streams", [True, False])
def test_a_full_disk_leaves_no_plan(
    rtx: trt.TensorRT,
    negation: tuple[Path, GraphSpec],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    streams: bool,
) -> None:
    """Tell whether the builder streams the plan, or gives it as a whole as older ones do."""
    module, plan = rtx.trt if streams else older(rtx.trt), tmp_path / "negation.plan"
    facts = trt_build.build(module, *negation, OPTIONS, plan)
    content = plan.read_bytes()
    assert facts["bytes"] == len(content) and facts["sha256"] == hashlib.sha256(content).hexdigest()
    plan.unlink()

    def full(self: object, data: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(plan_file.PlanFile, "write", full)
    with pytest.raises(UserError, match=r"cannot write negation\.plan \| No space left .* free some space"):
        trt_build.build(module, *negation, OPTIONS, plan)
    assert not list(tmp_path.glob("*.plan*"))


def older(module: Any) -> Any:
    """The binding with a builder that gives a plan as a whole."""

    class Builder:
        def __init__(self, log: object) -> None:
            found = module.Builder(log)
            for name in ("create_network", "create_builder_config", "create_optimization_profile"):
                setattr(self, name, getattr(found, name))
            self.build_serialized_network = found.build_serialized_network

    names = {name: getattr(module, name) for name in dir(module) if not name.startswith("__")}
    return SimpleNamespace(**{**names, "__name__": module.__name__, "Builder": Builder})


def test_memory_that_runs_out_while_compiling_is_told_from_other_refusals(rtx: trt.TensorRT) -> None:
    said = "Requested amount of GPU memory could not be allocated: out of memory"
    no_memory, other = (
        trt_build._refusal(rtx.trt, Path("llm.onnx"), each) for each in (said, "no implementation")
    )
    assert "--max-context" in str(no_memory) and not isinstance(no_memory, RefusedError)
    assert "--dialect" in str(other) and isinstance(other, RefusedError)


def test_the_process_answers_an_error_in_words(negation: tuple[Path, GraphSpec], tmp_path: Path) -> None:
    path = save(
        tmp_path / "unique.onnx",
        [helper.make_node("Unique", ["x"], ["y"], name="culprit")],
        [tensor("x", ["rows"])],
        [tensor("y", ["some"])],
    )
    job = {"target": "tensorrt-rtx", "source": str(path), "spec": negation[1].to_json(), "options": OPTIONS}
    places = {"plan": str(tmp_path / "p"), "cache": None, "parent": os.getpid()}
    command = [sys.executable, "-m", "foveate.engines.trt.builder"]
    done = subprocess.run(command, input=json.dumps(job | places), capture_output=True, text=True, check=True)
    assert "Unique culprit" in json.loads(done.stdout.splitlines()[-1])["error"]
    assert not (tmp_path / "p").exists()

"""``foveate compile`` tests what it made: workarounds are tried in order, and nothing wrong is written."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from foveate.engines import targets
from foveate.engines.errors import UserError
from foveate.engines.ort.backend import OnnxRuntime
from foveate.engines.spec import GraphSpec
from foveate.engines.targets import TARGETS
from foveate.engines.trt import backend as trt
from foveate.engines.trt.profiles import settled
from foveate.engines.workarounds import Workaround
from foveate.runtime.bundle import compiled
from foveate.runtime.bundle.loading import load
from foveate.runtime.cli.compile import _parser
from foveate.runtime.compiling.compile import compile_bundle
from foveate.runtime.pipeline import Pipeline


def workaround(name: str, **more: Any) -> Workaround:
    return Workaround(name, "a thread", ("onnxruntime",), **(more or {"flags": "-some"}))


class Miscompiler(OnnxRuntime):
    """Compiles ``llm`` from the file ``wrong`` unless a workaround named ``cure`` is used."""

    workarounds: tuple[Workaround, ...] = ()

    def __init__(self, wrong: Path, cure: str, workarounds: tuple[Workaround, ...]) -> None:
        self.wrong, self.cure, self.workarounds = wrong, cure, workarounds
        self.levels: list[int] = []

    def compile_graph(
        self, source: Path, folder: Path, spec: GraphSpec, options: Mapping[str, Any]
    ) -> list[str]:
        if spec.name == "llm" and self.cure not in options.get("workarounds", ()):
            source = self.wrong
        self.levels.append(options["accuracy_level"])
        return super().compile_graph(source, folder, spec, options)


@pytest.fixture
def sick(make_bundle: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A bundle, and a target whose compiler makes a wrong cache of it unless it is cured."""
    root, wrong = make_bundle(), make_bundle(fault="stale")

    def make(cure: str, *workarounds: Workaround) -> tuple[Path, Miscompiler]:
        found = Miscompiler(wrong / "llm.ort.onnx", cure, workarounds)
        monkeypatch.setattr(targets, "backend", lambda target: found)
        return root, found

    return make


def test_workarounds_are_tried_in_order_and_recorded(sick: Any) -> None:
    exact, idle = (
        workaround(name, options={"accuracy_level": n}) for name, n in (("second", 1), ("as it is", 4))
    )
    root, compiler = sick(
        "second", workaround("first"), workaround("spelt out", dialect="elsewhere"), idle, exact
    )
    said: list[str] = []
    compile_bundle(root, progress=said.append)
    (plan,) = compiled.compiled_engines(load(root))
    assert plan.workarounds["llm"] == ["first", "second"]
    assert plan.workarounds["vision_encoder"] == []
    assert plan.self_test["ok"] and len(plan.self_test["findings"]) == 13
    assert compiler.levels == [4, 4, 4, 4, 1]  # three graphs, then the wrong one twice more
    assert sum("llm is wrong" in line for line in said) == 2
    assert sum("trying" in line for line in said) == 2


def test_nothing_is_written_and_the_graph_is_named_if_no_workaround_helps(sick: Any) -> None:
    root, _ = sick("none", workaround("first"))
    with pytest.raises(
        UserError, match=r"the graph llm is wrong .* after 1 workarounds .* nothing was written"
    ):
        compile_bundle(root)
    assert not list(compiled.compiled_engines(load(root)))
    compile_bundle(root, self_test=False)
    (plan,) = compiled.compiled_engines(load(root))
    assert "not_run" in plan.self_test


def test_an_engine_that_cannot_run_here_is_compiled_with_a_note(
    make_bundle: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make_bundle()
    monkeypatch.setattr(OnnxRuntime, "cannot_run", lambda self, machine=None: "no GPU")
    said: list[str] = []
    compile_bundle(root, progress=said.append)
    (plan,) = compiled.compiled_engines(load(root))
    assert plan.self_test == {"not_run": "no GPU"}
    assert said[-1] == "self-test not run: no GPU"


def test_an_engine_that_cannot_run_here_is_passed_over(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(OnnxRuntime, "cannot_run", lambda self, machine=None: "no GPU can be used")
    with pytest.raises(UserError, match=r"does not fit \| no GPU can be used"):
        compiled.choose(load(bundle))


def test_a_graph_that_is_refused_is_named_with_its_method(
    make_bundle: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: OnnxRuntime, source: Path, *rest: object) -> None:
        raise UserError(f"cannot parse {source.name} | Unique node_7 | take another dialect")

    monkeypatch.setattr(OnnxRuntime, "compile_graph", refuse)
    with pytest.raises(
        UserError, match=r"vision_encoder of tap: cannot parse vision_encoder\.ort\.onnx \| Unique"
    ):
        compile_bundle(make_bundle())


@pytest.mark.parametrize(
    ("target", "options", "words"),
    [
        ("onnxruntime", {"capability": ["SM86"]}, "--capability is not an option of onnxruntime"),
        (
            "tensorrt-rtx",
            {"hardware_compatible": True},
            "--hardware-compatible is not an option of tensorrt-rtx",
        ),
        ("tensorrt-rtx", {"optimization_level": 6}, "wrong optimization level"),
        ("tensorrt-rtx", {"max_context": 0}, "wrong max context"),
        ("tensorrt-rtx", {"capability": ["SM87"]}, "SM87 is not a target .* --target tensorrt"),
    ],
)
def test_options_that_a_target_has_not(target: str, options: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words) as error:
        compile_bundle("nowhere", target, options=options)
    assert error.value.code == 2


@pytest.mark.parametrize(
    ("kind", "gpus", "words"),
    [
        ("fp8", ["SM86", "SM120"], r"fp8 needs an Ada GPU or newer, SM89, and this is for SM86\+SM120"),
        ("fp8", None, "fp8 needs an Ada GPU or newer, SM89, and this is for portable"),
        ("int4", ["SM75"], "int4 needs an Ampere GPU or newer, SM80"),
    ],
)
def test_a_precision_that_the_gpu_has_not(
    planned: Path, kind: str, gpus: list[str] | None, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trt, "find_gpu", lambda: "none")
    data = json.loads((planned / "bundle.json").read_text())
    data["precision"]["decoder"] = kind
    (planned / "bundle.json").write_text(json.dumps(data))
    with pytest.raises(UserError, match=f"{words}.* --precision") as error:
        compile_bundle(planned, "tensorrt-rtx", options={"capability": gpus})
    assert error.value.code == 2


def test_a_prompt_longer_than_the_plan_takes_is_refused_before_anything_runs(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model takes 128 rows, this engine was compiled for 40."""
    pipe = Pipeline.load(bundle)
    engine = pipe._engines["llm"]
    engine.spec = settled(engine.spec, 40)
    for each in pipe._engines.values():
        monkeypatch.setattr(each, "run", None)
    with pytest.raises(UserError, match=r"the prompt is too long \| got 72 tokens .* expected at most 39"):
        pipe.generate(np.zeros((20, 20, 3), np.uint8), "x" * 60, keep=4)


def test_a_dialect_that_the_bundle_lacks(bundle: Path) -> None:
    with pytest.raises(UserError, match=r"lacks the dialect native .* --dialects native"):
        compile_bundle(bundle, "tensorrt-rtx")
    with pytest.raises(UserError, match="unknown dialect of this target 'nativ'"):
        compile_bundle(bundle, "tensorrt-rtx", dialect="nativ")


@pytest.fixture
def planned(make_bundle: Any) -> Path:
    """A bundle that TensorRT-RTX compiled: its vision encoder alone, in float32."""
    root = make_bundle(prune=False)
    data = json.loads((root / "bundle.json").read_text())
    data["dialects"] = {"native": data["dialects"].pop("ort")}
    data["methods"][0]["stages"] = ["vision_encoder"]
    (root / "bundle.json").write_text(json.dumps(data))
    options = {"capability": ["SM86"], "max_context": 64, "device_sampling": True}
    compile_bundle(root, "tensorrt-rtx", options=options)
    return root


def test_a_plan_of_tensorrt_rtx(planned: Path) -> None:
    (plan,) = compiled.compiled_engines(load(planned))
    assert plan.machine["gpu"] == "SM86" and plan.key.endswith("-SM86")
    assert plan.options["max_context"] == 64
    assert plan.fault(load(planned), full=True) is None
    for name, value in (("version", "1.2.3"), ("gpu", "SM120"), ("platform", "linux-aarch64")):
        record = json.loads((plan.path / "engine.json").read_text())
        changed = compiled.CompiledEngine(
            plan.path, **{**record, "machine": {**record["machine"], name: value}}
        )
        assert f"made for {name} {value}, this machine has" in changed.fault(load(planned))
    command = compiled.compile_command(load(planned), plan)
    assert command.endswith("--target tensorrt-rtx --max-context 64 --device-sampling --capability SM86")


def test_inspect_shows_the_key_and_what_the_engine_tells(
    planned: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from foveate.runtime.cli.inspect import _engine, _engine_lines

    (plan,) = compiled.compiled_engines(load(planned))
    text = "\n".join(_engine_lines(_engine(load(planned), plan)))
    assert "gpu SM86" in text and "max_context 64" in text and "self-test" in text
    assert "layers: " in text and "float" in text


def test_a_compilation_tells_layers_and_memory_of_every_graph(
    planned: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    options = {"capability": ["SM86"], "max_context": 64}
    compile_bundle(planned, "tensorrt-rtx", options=options, force=True, progress=said.append)
    (line,) = [line for line in said if line.startswith("vision_encoder")]
    assert re.search(
        r" s +[\d.]+ MB  layers: \d+ float.*, built within [\d.]+ GiB, [\d.]+ MB of scratch$", line
    )


def test_a_compilation_killed_half_way_leaves_no_engine(make_bundle: Any, tmp_path: Path) -> None:
    root = make_bundle()
    child = subprocess.Popen([sys.executable, "-m", "foveate.runtime.cli", "compile", str(root)])
    deadline = time.monotonic() + 60
    while not list((root / "engines").glob(".compiling-*/*.onnx")):
        assert child.poll() is None and time.monotonic() < deadline
        time.sleep(0.005)
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    assert not list(compiled.compiled_engines(load(root)))
    compile_bundle(root)
    assert compiled.choose(load(root)).self_test["ok"]


@pytest.mark.parametrize("target", ["tensorrt", "tensorrt-rtx", "onnxruntime"])
def test_every_option_has_a_flag(target: str) -> None:
    flags = {action.dest for action in _parser()._actions}
    assert {option.name for option in TARGETS[target].options} <= flags


def test_a_bundle_that_cannot_be_written_to(make_bundle) -> None:
    root = make_bundle()
    (root / "engines").write_text("in the way")
    with pytest.raises(UserError, match="cannot write engines to"):
        compile_bundle(root)

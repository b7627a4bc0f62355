"""The TensorRT backend: plans with their facts, machines, refusals. The compiler needs no GPU."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import tensorrt_double.builder
import tensorrt_double.runtime
from cuda.bindings import runtime as cuda

from foveate.engines.errors import RefusedError, UserError
from foveate.engines.ort.backend import OnnxRuntime
from foveate.engines.spec import GraphSpec, Symbol, TensorSpec
from foveate.engines.trt import backend as trt
from foveate.engines.trt import builder, contexts, logger, plan_check, plan_file, runner, timing_cache
from foveate.engines.trt.cuda import device as trt_cuda
from foveate.engines.trt.cuda import gpu as trt_gpu
from foveate.engines.trt.cuda import libcudart, step_graphs
from foveate.engines.trt.workarounds import FLAGS_VARIABLE, WORKAROUNDS
from foveate.engines.workarounds import applicable

OPTIONS = {"max_context": 64}


def test_a_plan_with_its_facts(rtx: trt.TensorRT, negation: tuple[Path, GraphSpec], tmp_path: Path) -> None:
    path, spec = negation
    folder = tmp_path / "engines" / "work"
    assert rtx.compile_graph(path, folder, spec, {**OPTIONS, "capability": ["SM86", "SM120"]}) == []
    facts = rtx.describe(folder, "negation")
    assert facts["bytes"] == (folder / "negation.plan").stat().st_size > 100
    assert facts["layers"] == {"half": 1}
    assert facts["profiles"] == [{"x": [[1], [8], [64]]}]
    assert 20 << 20 < facts["peak_bytes"] < 4 << 30


def test_only_full_tensorrt_keeps_a_timing_cache(rtx: trt.TensorRT, monkeypatch: pytest.MonkeyPatch) -> None:
    assert rtx.timings(Path("engines/work"), OPTIONS) is None
    monkeypatch.setattr(trt, "find_gpu", lambda: trt_gpu.Gpu("some", 87, 8 << 30))
    rtx.target, rtx.version = "tensorrt", "10.3.0"
    assert rtx.timings(Path("engines/work"), OPTIONS) == Path(
        "engines/.timings-tensorrt-10.3.0-SM87-some-8-GiB.cache"
    )


BINDING = {  # how the code calls objects of TensorRT -> their class
    "builder": "Builder",
    "config": "IBuilderConfig",
    "context": "IExecutionContext",
    "engine": "ICudaEngine",
    "layer": "ILayer",
    "network": "INetworkDefinition",
    "parser": "OnnxParser",
    "profile": "IOptimizationProfile",
    "runtime": "Runtime",
    "runtime_cache": "IRuntimeCache",
    "runtime_config": "IRuntimeConfig",
}


def test_every_call_is_one_that_the_binding_has(rtx: trt.TensorRT) -> None:
    """The binding comes without stubs, so what is not executed without a GPU is at least looked up."""
    seen = set()
    calling = (builder, contexts, logger, plan_check, plan_file, runner, timing_cache)
    for module in (*calling, libcudart, step_graphs, trt_cuda, trt_gpu):
        for node in ast.walk(ast.parse(Path(module.__file__).read_text())):
            if isinstance(node, ast.Constant) and re.fullmatch("cuda[A-Z][A-Za-z0-9]+", str(node.value)):
                assert hasattr(cuda, node.value) or hasattr(cuda.cudaMemcpyKind, node.value), node.value
            if not isinstance(node, ast.Attribute):
                continue
            owner = (
                node.value.attr if isinstance(node.value, ast.Attribute) else getattr(node.value, "id", "")
            )
            if name := BINDING.get(owner.lstrip("_")):
                assert hasattr(getattr(rtx.trt, name), node.attr), f"{module.__name__}: {name}.{node.attr}"
                seen.add(name)
    assert seen == {*BINDING.values()}


DOUBLES = {  # the double's classes -> those of the binding
    tensorrt_double.builder.Builder: "Builder",
    tensorrt_double.builder.Config: "IBuilderConfig",
    tensorrt_double.builder.Network: "INetworkDefinition",
    tensorrt_double.builder.OnnxParser: "OnnxParser",
    tensorrt_double.builder.Profile: "IOptimizationProfile",
    tensorrt_double.builder.Layer: "ILayer",
    tensorrt_double.builder.Tensor: "ITensor",
    tensorrt_double.builder.TimingCache: "ITimingCache",
    tensorrt_double.runtime.Context: "IExecutionContext",
    tensorrt_double.runtime.Engine: "ICudaEngine",
    tensorrt_double.runtime.Inspector: "EngineInspector",
    tensorrt_double.runtime.Runtime: "Runtime",
    tensorrt_double.runtime.RuntimeCache: "IRuntimeCache",
    tensorrt_double.runtime.RuntimeConfig: "IRuntimeConfig",
}


@pytest.mark.parametrize(("double", "name"), DOUBLES.items(), ids=lambda each: str(each))
def test_the_double_offers_nothing_that_the_binding_has_not(
    rtx: trt.TensorRT, double: type, name: str
) -> None:
    offered = {each for each in vars(double) if not each.startswith("_")}
    assert offered and not {each for each in offered if not hasattr(getattr(rtx.trt, name), each)}


def test_a_build_that_is_killed_says_so(
    rtx: trt.TensorRT, negation: tuple[Path, GraphSpec], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = subprocess.run

    def killed(command: list[str], **rest: object) -> object:
        return run([sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"], **rest)

    monkeypatch.setattr(trt.subprocess, "run", killed)
    with pytest.raises(UserError, match=r"did not finish negation\.onnx \| its process ended with status -9"):
        rtx.compile_graph(negation[0], tmp_path, negation[1], OPTIONS)
    assert not list(tmp_path.glob("*.plan"))


@pytest.mark.parametrize(("status", "kind"), [(-9, UserError), (-11, RefusedError), (1, RefusedError)])
def test_a_builder_that_crashes_is_a_refusal_unless_memory_ran_out(
    rtx: trt.TensorRT,
    negation: tuple[Path, GraphSpec],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    status: int,
    kind: type[UserError],
) -> None:
    ended = subprocess.CompletedProcess([], status, stdout="TensorRT says something\n")
    monkeypatch.setattr(trt.subprocess, "run", lambda *rest, **more: ended)
    with pytest.raises(UserError, match=f"ended with status {status}") as error:
        rtx.compile_graph(negation[0], tmp_path, negation[1], OPTIONS)
    assert error.type is kind


def test_a_finished_plan_is_kept_when_looking_at_it_kills_the_process(
    rtx: trt.TensorRT, negation: tuple[Path, GraphSpec], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = subprocess.run

    def killed(command: list[str], **rest: Any) -> object:
        code = (
            "import json, os, sys\nfrom foveate.engines.trt import builder\n"
            "builder._on_the_gpu = lambda *rest: os.kill(os.getpid(), 9)\n"
            "builder._main(json.load(sys.stdin))\n"
        )
        return run([sys.executable, "-c", code], **rest)

    monkeypatch.setattr(trt.subprocess, "run", killed)
    (note,) = rtx.compile_graph(negation[0], tmp_path, negation[1], OPTIONS)
    assert note == "the plan was not looked at, the process ended with status -9"
    assert rtx.describe(tmp_path, "negation")["bytes"] == (tmp_path / "negation.plan").stat().st_size


def test_a_plan_with_a_flipped_byte_is_refused_before_it_is_given_to_tensorrt(
    rtx: trt.TensorRT,
    negation: tuple[Path, GraphSpec],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path, spec = negation
    monkeypatch.setattr(runner, "device", lambda: Holding(8 << 30))
    rtx.compile_graph(path, tmp_path / "work", spec, OPTIONS)
    plan = tmp_path / "work" / "negation.plan"
    content = bytearray(plan.read_bytes())
    content[len(content) // 2] ^= 1
    plan.write_bytes(content)
    with pytest.raises(UserError, match=r"negation\.plan has changed since it was compiled .* --force"):
        rtx.load(tmp_path / "work", spec, OPTIONS)


def test_without_a_gpu_plans_are_compiled_and_not_executed(
    rtx: trt.TensorRT, negation: tuple[Path, GraphSpec], tmp_path: Path, no_gpu: str
) -> None:
    path, spec = negation
    rtx.compile_graph(path, tmp_path / "work", spec, OPTIONS)
    assert rtx.cannot_run() == no_gpu
    with pytest.raises(UserError, match=r"cannot be executed here .* onnxruntime"):
        rtx.load(tmp_path / "work", spec, OPTIONS)


def test_too_little_memory_on_the_gpu(
    rtx: trt.TensorRT, negation: tuple[Path, GraphSpec], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "device", lambda: Holding(10))
    path, spec = negation
    rtx.compile_graph(path, tmp_path / "work", spec, OPTIONS)
    monkeypatch.setattr(runner, "sha256", lambda *rest, **more: pytest.fail("the plan is read first"))
    with pytest.raises(UserError, match=r"no room for negation\.plan .* close other programs"):
        rtx.load(tmp_path / "work", spec, OPTIONS)


def test_scratch_is_counted_before_the_plan_is_read(
    rtx: trt.TensorRT, negation: tuple[Path, GraphSpec], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "device", lambda: Holding(1 << 30))
    path, spec = negation
    rtx.compile_graph(path, tmp_path, spec, OPTIONS)
    facts = rtx.describe(tmp_path, "negation")
    (tmp_path / "negation.json").write_text(json.dumps(facts | {"scratch_bytes": 2 << 30}))
    with pytest.raises(UserError, match=r"1024 MiB are free, it needs 2048: 2048 of scratch"):
        rtx.load(tmp_path, spec, OPTIONS)


def test_the_builder_tells_the_scratch_of_the_largest_call(rtx: trt.TensorRT, tmp_path: Path) -> None:
    """64 rows of 4,096 numbers are needed as a whole, since their transpose is multiplied."""
    text = """<ir_version: 10, opset_import: ["": 24]>
products (float16[rows, 8] x) => (float16[4096, 8] y) {
    a = MatMul(x, w)
    b = Softmax(a)
    c = Transpose <perm = [1, 0]> (b)
    y = MatMul(c, x)
}"""
    model = onnx.parser.parse_model(text)
    weight = np.random.default_rng(0).standard_normal((8, 4096)).astype("float16")
    model.graph.initializer.append(onnx.numpy_helper.from_array(weight, "w"))
    onnx.save(model, tmp_path / "products.onnx")
    rows = Symbol("rows", 1, 8, 64)
    spec = GraphSpec(
        "products", (TensorSpec("x", "float16", (rows, 8)),), (TensorSpec("y", "float16", (4096, 8)),)
    )
    rtx.compile_graph(tmp_path / "products.onnx", tmp_path, spec, OPTIONS)
    assert rtx.describe(tmp_path, "products")["scratch_bytes"] >= 64 * 4096 * 2


class Holding:
    """A device with this many bytes of free memory."""

    def __init__(self, free: int) -> None:
        self.free_memory, self.scratch_size = lambda: free, 0


class TestMachine:
    """Facts that a plan is bound to."""

    def seen(self, monkeypatch: pytest.MonkeyPatch, sm: int) -> None:
        monkeypatch.setattr(trt, "find_gpu", lambda: trt_gpu.Gpu("some", sm, 8 << 30))

    def test_without_a_gpu(self, rtx: trt.TensorRT, no_gpu: str) -> None:
        assert rtx.machine({})["gpu"] == "portable"
        assert rtx.key(rtx.machine({"capability": ["SM86", "SM89"]})).endswith("-SM86+SM89")

    @pytest.mark.parametrize(
        ("sm", "capability", "reason"),
        [
            (89, None, None),
            (120, None, None),
            (86, ["SM86"], None),
            (75, None, "for portable GPUs, this one is SM75 | compile with --capability SM75"),
            (89, ["SM86"], "for SM86 GPUs, this one is SM89 | compile with --capability SM89"),
            *((sm, ["SM86"], f"does not run on some | that is SM{sm}") for sm in (87, 90, 100, 110)),
        ],
    )
    def test_on_a_gpu(
        self,
        rtx: trt.TensorRT,
        monkeypatch: pytest.MonkeyPatch,
        sm: int,
        capability: list[str] | None,
        reason: str | None,
    ) -> None:
        """A plan says which GPUs it is for, whatever the GPU of the machine that compiled it."""
        self.seen(monkeypatch, sm)
        machine = rtx.machine({"capability": capability})
        assert machine["gpu"] == ("+".join(capability) if capability else "portable")
        found = rtx.cannot_run(machine)
        assert found is None if reason is None else found is not None and reason in found

    @pytest.mark.parametrize("sm", [87, 90, 100, 110])
    def test_a_gpu_that_is_not_in_the_list_of_tensorrt_rtx(
        self, rtx: trt.TensorRT, monkeypatch: pytest.MonkeyPatch, sm: int
    ) -> None:
        self.seen(monkeypatch, sm)
        words = (
            rf"does not run on some \| that is SM{sm}, it has .*SM89.* \| take --target tensorrt, or .*cuda"
        )
        with pytest.raises(UserError, match=words):
            rtx.machine({})
        assert f"SM{sm}" in str(rtx.cannot_run())

    def test_a_plan_of_an_agx_orin_is_not_taken_for_an_orin_nano(
        self, rtx: trt.TensorRT, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        rtx.target, machines = "tensorrt", []
        for memory in (62_700_000 << 10, 61_900_000 << 10, 7_803_200 << 10):  # the first two: one model
            monkeypatch.setattr(trt, "find_gpu", lambda m=memory: trt_gpu.Gpu("Orin", 87, m, integrated=True))
            machines.append(rtx.machine({}))
        assert [machine["device"] for machine in machines] == ["Orin, 60 GiB"] * 2 + ["Orin, 8 GiB"]
        assert rtx.key(machines[0]) == f"tensorrt-{rtx.version}-SM87-Orin-60-GiB" != rtx.key(machines[2])
        assert "device" not in rtx.machine({"hardware_compatible": True})

    def test_full_tensorrt_builds_for_the_gpu_at_hand(
        self, rtx: trt.TensorRT, monkeypatch: pytest.MonkeyPatch, no_gpu: str
    ) -> None:
        rtx.target = "tensorrt"  # its own binding cannot be installed here
        with pytest.raises(UserError, match=r"the GPU it stands on .* on the device"):
            rtx.machine({})
        self.seen(monkeypatch, 87)
        assert rtx.machine({})["gpu"] == "SM87"
        assert rtx.machine({"hardware_compatible": True})["gpu"] == "SM80 or later"
        assert rtx.machine({"version_compatible": True})["version"].endswith(".*")
        with pytest.raises(UserError, match="--capability was given"):
            rtx.machine({"capability": ["SM86"]})

    @pytest.mark.parametrize(
        ("target", "version", "dialects"),
        [
            ("tensorrt", "10.3.0", ("primitive",)),
            ("tensorrt", "10.14.1", ("primitive",)),
            ("tensorrt", "10.16.2", ("native", "primitive")),
            ("tensorrt-rtx", "1.7.1", ("native", "primitive")),
        ],
    )
    def test_dialects_follow_the_version(
        self, rtx: trt.TensorRT, target: str, version: str, dialects: tuple[str, ...]
    ) -> None:
        rtx.target, rtx.version = target, version
        assert dialects == rtx.dialects


def test_workarounds_are_those_of_target_and_version() -> None:
    names = {
        version: [r.flags for r in applicable(WORKAROUNDS, "tensorrt", version)]
        for version in ("10.3.0", "10.13.3")
    }
    assert names == {
        "10.3.0": [None],
        "10.13.3": ["-peep:fc_h_fusion=off", "-peep:match_dual_gemm=off", None],
    }
    assert [workaround.dialect for workaround in applicable(WORKAROUNDS, "tensorrt-rtx", "1.7.1.116")] == [
        "primitive"
    ]
    assert [workaround.options for workaround in OnnxRuntime().workarounds] == [{"accuracy_level": 1}]
    assert all(workaround.source for workaround in WORKAROUNDS)


def test_a_workaround_reaches_the_build(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(FLAGS_VARIABLE, "-given")
    first = next(workaround for workaround in WORKAROUNDS if workaround.flags)
    assert trt._environment([first.name]) == {FLAGS_VARIABLE: f"-given {first.flags}"}
    assert trt._environment([]) == {}


def test_an_orin_has_no_fp8(rtx: trt.TensorRT) -> None:
    assert "this is for SM87" in rtx.refusal({"fp8", "fp16"}, {"gpu": "SM87"})
    assert rtx.refusal({"int4", "int8", "fp16"}, {"gpu": "SM87"}) is None
    assert rtx.refusal({"fp8"}, {"gpu": "SM89+SM120"}) is None

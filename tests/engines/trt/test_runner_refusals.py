"""Answers of TensorRT and CUDA that are refusals: each is an error in words, and memory comes back."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cuda_double import Cuda
from summing_engine import CACHE, HEADS, expected, feeds, inner, spec, steps, summer
from tensorrt_double.binding import Binding

from foveate.engines.errors import NoMemoryError, RefusedError, UserError
from foveate.engines.spec import GraphSpec, TensorSpec
from foveate.engines.trt import runner
from foveate.engines.trt.cuda.device import Device, TrtBuffer, device


class TestRefusals:
    """Every answer of TensorRT is looked at."""

    @pytest.mark.parametrize(
        ("call", "answer", "words"),
        [
            ("deserialize_cuda_engine", None, r"does not load llm\.plan"),
            ("create_execution_context", None, "cannot run llm.plan | no context, as when memory runs out"),
            ("set_optimization_profile_async", False, "cannot run llm.plan | profile 0 is refused"),
        ],
    )
    def test_while_loading(
        self, binding: Binding, tmp_path: Path, call: str, answer: object, words: str
    ) -> None:
        binding.faults[call] = answer
        with pytest.raises(UserError, match=words):
            summer(binding, tmp_path)

    @pytest.mark.parametrize(
        ("call", "answer", "words"),
        [
            ("set_input_shape", False, r"TensorRT refuses rows of shape \(1, 3, 3\)"),
            ("set_tensor_address", False, "TensorRT refuses the address of rows"),
            ("infer_shapes", ["rows"], "TensorRT lacks the shapes of rows"),
            ("execute_async_v3", False, "TensorRT did not start"),
        ],
    )
    def test_while_running(
        self, binding: Binding, cuda: Cuda, tmp_path: Path, call: str, answer: object, words: str
    ) -> None:
        engine = summer(binding, tmp_path)
        binding.faults[call] = answer
        with pytest.raises(RuntimeError, match=words):
            steps(engine, cuda)
        assert not any(context.runs for context in inner(engine).contexts)
        assert steps(engine, cuda)[0] == expected(before=False)

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            ({"dtype": "float16"}, r"total is float32\[1\], expected total float16\[1\]"),
            ({"shape": (2,)}, r"total is float32\[1\], expected total float32\[2\]"),
            ({"name": "sum"}, "it has no output sum, expected sum"),
        ],
    )
    def test_of_a_plan_that_differs_from_its_spec(
        self, binding: Binding, tmp_path: Path, change: dict[str, Any], words: str
    ) -> None:
        graph = spec()
        summer(binding, tmp_path)
        fields = {"name": "total", "dtype": "float32", "shape": (1,), **change}
        other = GraphSpec(graph.name, graph.inputs, (TensorSpec(**fields), graph.outputs[1]), graph.in_place)
        with pytest.raises(RefusedError, match=f"does not fit its graph . {words}"):
            runner.load(binding, "tensorrt", tmp_path / "llm.plan", other, {})

    def test_of_a_plan_that_writes_elsewhere(self, binding: Binding, tmp_path: Path) -> None:
        graph = spec()
        summer(binding, tmp_path)
        other = GraphSpec(graph.name, graph.inputs, graph.outputs)
        words = "present.0.key is written to the memory of past.0.key, expected memory of its own"
        with pytest.raises(RefusedError, match=words):
            runner.load(binding, "tensorrt", tmp_path / "llm.plan", other, {})

    @pytest.mark.parametrize("kind", ["Builder", "Runtime"])
    def test_of_tensorrt_to_start(self, binding: Binding, tmp_path: Path, kind: str) -> None:
        binding.faults[kind] = None
        with pytest.raises(UserError, match=r"tensorrt 10\.16\.1\.11 cannot start .* nvidia-smi"):
            summer(binding, tmp_path)


class TestMemory:
    """Memory that runs out, and memory that comes back."""

    def test_memory_that_runs_out_is_a_memory_error(
        self, binding: Binding, cuda: Cuda, tmp_path: Path
    ) -> None:
        engine = summer(binding, tmp_path)
        cuda.size = cuda.used
        with pytest.raises(MemoryError):
            engine.allocate("past.0.key", {})

    def test_what_nobody_uses_is_freed_and_the_allocation_tried_again(self, cuda: Cuda) -> None:
        home = Device()
        cuda.size = cuda.used + (1 << 20)
        kept = TrtBuffer(home, (300, 1000), "uint8")
        TrtBuffer(home, (500, 1000), "uint8")  # gone at once; its memory stays in the pool
        assert cuda.used > 800_000
        large = TrtBuffer(home, (700, 1000), "uint8")
        assert cuda.owns(kept.address, kept.nbytes) and cuda.owns(large.address, large.nbytes)
        with pytest.raises(MemoryError):
            TrtBuffer(home, (700, 1000), "uint8")

    def test_prompts_of_many_lengths_hold_little(self, cuda: Cuda) -> None:
        home, random, most = Device(), np.random.default_rng(0), 0
        for length in random.integers(60, 1024, 500):
            one, other = (TrtBuffer(home, (1, int(length), 512), "float16") for _ in range(2))
            most = max(most, one.nbytes + other.nbytes)
            del one, other
        assert cuda.used < 5 * most

    def test_what_was_freed_is_not_used_by_work_that_waits(
        self, binding: Binding, cuda: Cuda, tmp_path: Path
    ) -> None:
        engine = summer(binding, tmp_path)
        past = engine.allocate("past.0.key", {})
        outputs = engine.run({**feeds(3, 0), "past.0.key": past})
        assert cuda.waiting()
        engine._staged.clear()
        device().release()
        assert float(outputs["total"].numpy()[0]) == expected(before=False)[0]


def test_the_cache_is_counted_before_the_plan_is_read(
    binding: Binding, cuda: Cuda, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    summer(binding, tmp_path)
    plan, graph = tmp_path / "llm.plan", spec(False)
    wide = graph.input("past.0.key")
    wide = replace(wide, shape=(1, HEADS, 1 << 20, *wide.shape[3:]))
    graph = replace(graph, inputs=tuple(wide if t.name == wide.name else t for t in graph.inputs))
    monkeypatch.setattr(Device, "free_memory", lambda self: 1 << 20)
    with pytest.raises(
        NoMemoryError, match=r"1 MiB are free, it needs \d+: \d+ of kv cache \| .*--max-context"
    ):
        runner.load(binding, "tensorrt", plan, graph, {"max_context": CACHE})

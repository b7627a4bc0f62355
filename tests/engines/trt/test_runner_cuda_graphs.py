"""Decode steps as CUDA graphs: captured, replayed, said when they fail, and gone with their conversation."""

from __future__ import annotations

import gc
import warnings
from pathlib import Path

import pytest
from cuda_double import Cuda
from summing_engine import expected, feeds, inner, prompt_of, steps, summer
from tensorrt_double.binding import Binding
from tensorrt_double.runtime import SCRATCH


class TestCudaGraphs:
    """Steps that are replayed, on request."""

    def test_steps_are_replayed(self, binding: Binding, cuda: Cuda, tmp_path: Path) -> None:
        answers, calls = steps(summer(binding, tmp_path, cuda_graphs=True), cuda)
        assert answers == expected(before=False)
        launched = [each["cudaGraphLaunch"] for each in calls]
        captured = [each["cudaStreamBeginCapture"] for each in calls]
        assert launched[0] == captured[0] == 0  # the prompt
        assert sum(captured) >= 1 and launched[-1] == 1
        assert all(one != other for one, other in zip(launched[1:], captured[1:], strict=True))

    @pytest.mark.parametrize(
        "call", ["cudaStreamBeginCapture", "cudaStreamEndCapture", "cudaGraphInstantiateWithFlags"]
    )
    def test_a_capture_that_fails_is_said_once_and_steps_run_without(
        self, binding: Binding, cuda: Cuda, tmp_path: Path, call: str
    ) -> None:
        engine = summer(binding, tmp_path, cuda_graphs=True)
        cuda.fail(call, 900)
        with pytest.warns(RuntimeWarning, match="llm.0: decode steps cannot be captured"):
            answers, calls = steps(engine, cuda)
        assert answers == expected(before=False)
        assert sum(each["cudaStreamBeginCapture"] for each in calls) == 1
        assert not cuda.graphs and not any(each["cudaGraphLaunch"] for each in calls)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert steps(engine, cuda)[0] == expected(before=False)

    def test_work_that_fails_while_it_is_captured_leaves_a_stream_that_works(
        self, binding: Binding, cuda: Cuda, tmp_path: Path
    ) -> None:
        engine, past = summer(binding, tmp_path, cuda_graphs=True), None
        past = engine.allocate("past.0.key", {})
        engine.run({**feeds(3, 0), "past.0.key": past})
        launch, refused = inner(engine).contexts[1].execute_async_v3, [True, False]
        inner(engine).contexts[1].execute_async_v3 = lambda stream: refused.pop(0) and launch(stream)
        with pytest.warns(RuntimeWarning, match="did not start"):
            engine.run({**feeds(1, 3), "past.0.key": past})
        inner(engine).contexts[1].execute_async_v3 = launch
        assert steps(engine, cuda)[0] == expected(before=False)

    def test_graphs_go_with_their_conversation(self, binding: Binding, cuda: Cuda, tmp_path: Path) -> None:
        """One that is alive keeps its own; a new one gets some, however many there were before."""
        engine = summer(binding, tmp_path, cuda_graphs=True)
        held = engine.allocate("past.0.key", {})
        for _ in range(6):
            past = engine.allocate("past.0.key", {})
            _, calls = steps(engine, cuda, past)
            assert calls[-1]["cudaGraphLaunch"] == 1
            _, calls = steps(engine, cuda, held)
            assert calls[-1]["cudaGraphLaunch"] == 1
            del past
        held = None
        gc.collect()
        engine.run({**feeds(3, 0), "past.0.key": engine.allocate("past.0.key", {})})
        assert not cuda.graphs

    def test_tensorrt_rtx_has_its_own(self, cuda: Cuda, tmp_path: Path) -> None:
        engine = summer(Binding(cuda, "1.7.1.116", rtx=True), tmp_path, cuda_graphs=True)
        answers, calls = steps(engine, cuda)
        assert answers == expected(before=False)
        assert not any(each["cudaStreamBeginCapture"] for each in calls)
        assert {each.settings.cuda_graph_strategy.name for each in inner(engine).contexts} == {
            "WHOLE_GRAPH_CAPTURE"
        }

    def test_kernels_of_tensorrt_rtx_are_kept_beside_the_plan(self, cuda: Cuda, tmp_path: Path) -> None:
        trt, file, started = Binding(cuda, "1.7.1.116", rtx=True), tmp_path / ".llm.kernels", []
        for damage in (None, None, b"nonsense", None):
            engine = summer(trt, tmp_path)
            started.append(inner(engine).contexts[0].settings.cache.kernels)
            steps(engine, cuda)
            del engine
            gc.collect()
            if damage:
                file.write_bytes(damage)
        assert started == [0, 2, 4, 0]


def test_cuda_graphs_are_captured_anew_after_the_scratch_memory_has_moved(
    binding: Binding, cuda: Cuda, tmp_path: Path
) -> None:
    """The double raises when a graph uses memory that was freed."""
    engine = summer(binding, tmp_path, cuda_graphs=True)
    assert steps(engine, cuda)[0] == expected(before=False)
    prompt_of(engine, 8)
    answers, calls = steps(engine, cuda)
    assert answers == expected(before=False)
    assert calls[-1]["cudaGraphLaunch"] == 1 and inner(engine).lent[-1] == 8 * SCRATCH

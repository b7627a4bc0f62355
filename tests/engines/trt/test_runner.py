"""Execution of a plan, on doubles that fail where a GPU would not, or not at once.

What is bound where, what is allocated, which profile runs, what a CUDA graph replays. TensorRT itself
is tested by ``test_gpu``.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from cuda_double import Cuda
from onnx import helper
from summing_engine import ROWS, WIDTH, expected, inner, loaded, on_device, prompt_of, save, steps, summer
from tensorrt_double.binding import Binding
from tensorrt_double.runtime import SCRATCH, Context

from foveate.engines.spec import GraphSpec, Symbol, TensorSpec
from foveate.engines.trt.cuda.device import Device, device
from foveate.engines.trt.runner import TrtEngine
from foveate.runtime.llm.logits import Logits
from foveate.runtime.llm.sampling import Sampler, Sampling


def test_the_cache_is_bound_in_place_and_steps_allocate_nothing(
    binding: Binding, cuda: Cuda, tmp_path: Path
) -> None:
    engine = summer(binding, tmp_path)
    answers, calls = steps(engine, cuda)
    assert answers == expected(before=False)
    prefill, decode = inner(engine).contexts
    assert (prefill.profile, decode.profile) == (0, 1) and (prefill.runs, decode.runs) == (1, 4)
    assert prefill.places["present.0.key"] == prefill.places["past.0.key"]
    assert [each["cudaMalloc"] for each in calls[2:]] == [0, 0, 0]
    assert not any(each["cudaMemcpy2DAsync"] for each in calls)


def test_new_rows_are_appended_where_the_graph_gives_them_out(
    binding: Binding, cuda: Cuda, tmp_path: Path
) -> None:
    answers, calls = steps(summer(binding, tmp_path, appending=True), cuda)
    assert answers == expected(before=True)
    assert [each["cudaMemcpy2DAsync"] for each in calls] == [1] * 5


def test_scratch_is_what_the_shapes_need_not_what_the_largest_would(
    binding: Binding, cuda: Cuda, tmp_path: Path
) -> None:
    """Nothing is taken at load. It grows with the longest prompt so far, and decoding asks once."""
    engine, home = summer(binding, tmp_path), device()
    assert home.scratch_size == 0 and not cuda.memory
    steps(engine, cuda)
    assert inner(engine).lent == [3 * SCRATCH] * 5 and inner(engine).asked == 2
    prompt_of(engine, 2)
    assert home.scratch_size == 3 * SCRATCH
    prompt_of(engine, 6)
    assert inner(engine).lent[-2:] == [3 * SCRATCH, 6 * SCRATCH] and inner(engine).asked == 4
    assert ROWS.max == 8 and home.scratch_size == 6 * SCRATCH


def test_scratch_is_that_of_the_largest_shapes_where_tensorrt_tells_none(
    binding: Binding, cuda: Cuda, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Context, "update_device_memory_size_for_shapes", lambda self: 0)
    engine = summer(binding, tmp_path)
    steps(engine, cuda)
    assert inner(engine).lent == [ROWS.max * SCRATCH] * 5


def pruner(trt: Binding, folder: Path) -> TrtEngine:
    """A graph that leaves the first ``keep`` of its rows; the value of ``keep`` determines a shape."""
    keep = Symbol("keep", 1, 2, 8)
    graph = GraphSpec(
        "pruner",
        (TensorSpec("rows", "float32", (1, ROWS, WIDTH)), TensorSpec("keep", "int64", (), value=keep)),
        (TensorSpec("tokens", "float32", (1, keep, WIDTH)),),
    )
    nodes = [
        helper.make_node("Unsqueeze", ["keep", "zero"], ["end"]),
        helper.make_node("Slice", ["rows", "zero", "end", "axis"], ["tokens"]),
    ]
    return loaded(trt, save(folder / "pruner.onnx", graph, nodes, zero=[0], axis=[1]), graph)


def test_values_that_shape_the_graph_stay_on_the_host_until_they_are_read(
    binding: Binding, cuda: Cuda, tmp_path: Path
) -> None:
    """A queued run reads them when it runs, so they must not be freed behind the call."""
    engine, rows = pruner(binding, tmp_path), np.arange(15, dtype="float32").reshape(1, 5, WIDTH)
    for keep in (3, 1, 2):
        value = np.array(keep)
        tokens = engine.run({"rows": rows, "keep": value})["tokens"]
        assert cuda.waiting()
        value[...] = 7  # the caller's own array is not what is read
        del value
        hoard = [np.array(9) for _ in range(500)]  # would take the place of what was freed
        np.testing.assert_array_equal(tokens.numpy(), rows[:, :keep])
        del hoard
    assert inner(engine).asked == 3  # each value may need other scratch memory


def test_one_logger_and_one_runtime(binding: Binding, cuda: Cuda, tmp_path: Path) -> None:
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        summer(binding, tmp_path / name)
    assert len(binding.loggers) == len(binding.runtimes) == 1


def test_only_the_logits_that_the_settings_need_are_copied(cuda: Cuda) -> None:
    home, random = Device(), np.random.default_rng(4)
    values = random.standard_normal((1, 1, 900)).astype("float16")
    ids = np.argsort(-values, kind="stable")[..., :64]
    top = on_device(home, np.take_along_axis(values, ids, -1)), on_device(home, ids.astype("int32"))
    logits = Logits(on_device(home, values), top)
    for settings, numbers in (
        ((0.0,), [64, 64]),
        ((1.0, 0.9, 50), [64, 64]),
        ((1.0, 0.9), [900]),
        ((1.0, None, 64), [900]),
    ):
        cuda.copied.clear()
        token = Sampler(Sampling(*settings, seed=1))(logits)
        assert token == Sampler(Sampling(*settings, seed=1))(Logits(values))
        copied = [size // width for (_, size), width in zip(cuda.copied, (2, 4), strict=False)]
        assert copied == numbers and {kind for kind, _ in cuda.copied} == {"cudaMemcpyDeviceToHost"}

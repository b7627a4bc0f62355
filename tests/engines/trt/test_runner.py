"""Execution of a plan, with CUDA and an engine that stand in for the real ones in host memory.

What is bound where, what is allocated, which profile runs, what a CUDA graph replays. TensorRT itself
is tested by ``test_gpu``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tensorrt_double import HEADS, PAST, ROWS, TRT, WIDTH, Cuda, Plan

from foveate.engines.row_gather import Rows
from foveate.engines.spec import GraphSpec, TensorSpec
from foveate.engines.trt.cuda import device as trt_cuda
from foveate.engines.trt.cuda.device import Device, TrtBuffer
from foveate.engines.trt.runner import TrtEngine
from foveate.runtime.bundle.manifest import MethodInfo
from foveate.runtime.clock import Clock
from foveate.runtime.images.processor import image_processor
from foveate.runtime.images.token_layout import single
from foveate.runtime.llm.logits import Logits
from foveate.runtime.llm.sampling import Sampler, Sampling
from foveate.runtime.llm.visual_tokens import VisualTokens
from foveate.runtime.vision.features import ImageFeatures
from foveate.runtime.vision.stages import VisionStages

Place, Gather = Callable[[np.ndarray], Any], Callable[[str, Rows], Any]


def spec(appending: bool = False) -> GraphSpec:
    past = TensorSpec("past.0.key", "float32", PAST)
    found = GraphSpec(
        "llm.0",
        (TensorSpec("rows", "float32", (1, ROWS, WIDTH)), TensorSpec("write_index", "int64", (1,)), past),
        (TensorSpec("total", "float32", (1,)), TensorSpec("present.0.key", "float32", PAST)),
        (("present.0.key", "past.0.key"),),
    )
    return found.appending() if appending else found


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Cuda:
    found = Cuda()
    monkeypatch.setattr(trt_cuda, "runtime", lambda: found)
    return found


def steps(engine: TrtEngine, cuda: Cuda) -> tuple[list[float], list[Counter[str]]]:
    """A prompt of three rows and four steps: the answers, and the calls of CUDA that each took."""
    past, start, answers, calls = engine.allocate("past.0.key", {}), 0, [], []
    for count in (3, 1, 1, 1, 1):
        cuda.calls.clear()
        feeds = {"rows": np.full((1, count, WIDTH), start, "float32"), "write_index": np.array([start])}
        outputs = engine.run({**feeds, "past.0.key": past})
        assert outputs["present.0.key"] is past
        answers.append(float(outputs["total"].numpy()[0]))
        calls.append(Counter(cuda.calls))
        start += count
    return answers, calls


def expected(before: bool) -> list[float]:
    """The sums of the cache behind each step, or ``before`` the step's rows are in it."""
    ends = np.cumsum([3 * 1, 4, 5, 6, 7]) * HEADS * WIDTH
    return [0.0, *ends[:-1].tolist()] if before else ends.tolist()


def test_the_cache_is_bound_in_place_and_steps_allocate_nothing(cuda: Cuda) -> None:
    plan = Plan(cuda)
    answers, calls = steps(TrtEngine(TRT, plan, spec(), Device(), cuda_graphs=False), cuda)
    assert answers == expected(before=False)
    prefill, decode = plan.contexts
    assert (prefill.profile, decode.profile) == (0, 1) and (prefill.runs, decode.runs) == (1, 4)
    assert prefill.places["present.0.key"] == prefill.places["past.0.key"]
    assert [each["cudaMalloc"] for each in calls[2:]] == [0, 0, 0]
    assert not any(each["cudaMemcpy2DAsync"] for each in calls)


def test_new_rows_are_appended_where_the_graph_gives_them_out(cuda: Cuda) -> None:
    plan = Plan(cuda)
    answers, calls = steps(TrtEngine(TRT, plan, spec(appending=True), Device(), cuda_graphs=False), cuda)
    assert answers == expected(before=True)
    assert [each["cudaMemcpy2DAsync"] for each in calls] == [1] * 5


def test_steps_are_replayed_as_cuda_graphs_where_that_is_asked_for(cuda: Cuda) -> None:
    plan = Plan(cuda)
    answers, calls = steps(TrtEngine(TRT, plan, spec(), Device(), cuda_graphs=True), cuda)
    assert answers == expected(before=False)
    launched = [each["cudaGraphLaunch"] for each in calls]
    captured = [each["cudaStreamBeginCapture"] for each in calls]
    assert launched[0] == captured[0] == 0  # the prompt
    assert sum(captured) >= 1 and launched[-1] == 1
    assert all(one != other for one, other in zip(launched[1:], captured[1:], strict=True))


def prompt_of(engine: TrtEngine, count: int) -> float:
    past = engine.allocate("past.0.key", {})
    feeds = {"rows": np.zeros((1, count, WIDTH), "float32"), "write_index": np.array([0])}
    return float(engine.run({**feeds, "past.0.key": past})["total"].numpy()[0])


def test_scratch_is_what_the_shapes_need_not_what_the_largest_would(cuda: Cuda) -> None:
    """Nothing is taken at load. It grows with the longest prompt so far, and decoding asks once."""
    plan, home = Plan(cuda), Device()
    engine = TrtEngine(TRT, plan, spec(), home, cuda_graphs=False)
    assert home.scratch_size == 0 and not cuda.memory
    steps(engine, cuda)
    assert plan.scratch_used == [300] * 5 and plan.asked == 2
    prompt_of(engine, 2)
    assert home.scratch_size == 300
    prompt_of(engine, 6)
    assert plan.scratch_used[-2:] == [300, 600] and plan.asked == 4
    assert ROWS.max == 8 and home.scratch_size == 600


def test_scratch_is_that_of_the_largest_shapes_where_tensorrt_tells_none(cuda: Cuda) -> None:
    plan, home = Plan(cuda, lost=True), Device()
    steps(TrtEngine(TRT, plan, spec(), home, cuda_graphs=False), cuda)
    assert plan.scratch_used == [800] * 5


def test_cuda_graphs_are_captured_anew_after_the_scratch_memory_has_moved(cuda: Cuda) -> None:
    """The double raises when a graph uses memory that was freed."""
    plan = Plan(cuda)
    engine = TrtEngine(TRT, plan, spec(), Device(), cuda_graphs=True)
    assert steps(engine, cuda)[0] == expected(before=False)
    prompt_of(engine, 8)
    answers, calls = steps(engine, cuda)
    assert answers == expected(before=False)
    assert calls[-1]["cudaGraphLaunch"] == 1 and plan.scratch_used[-1] == 800


def test_values_that_shape_the_graph_stay_on_the_host(cuda: Cuda) -> None:
    plan = Plan(cuda, hosted=("write_index",))
    engine = TrtEngine(TRT, plan, spec(), Device(), cuda_graphs=False)
    answers, _calls = steps(engine, cuda)
    assert answers == expected(before=False)
    assert plan.contexts[0].places["write_index"] not in cuda.memory
    assert plan.asked == 5  # each value may need other scratch memory


def test_a_shape_that_tensorrt_does_not_take_ends_before_anything_runs(cuda: Cuda) -> None:
    plan = Plan(cuda, refuses="rows")
    engine = TrtEngine(TRT, plan, spec(), Device(), cuda_graphs=False)
    with pytest.raises(RuntimeError, match="TensorRT refuses rows of shape"):
        steps(engine, cuda)
    assert not any(context.runs for context in plan.contexts)


def test_memory_that_runs_out_is_a_memory_error(cuda: Cuda, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = TrtEngine(TRT, Plan(cuda), spec(), Device(), cuda_graphs=False)
    monkeypatch.setattr(Cuda, "cudaMalloc", lambda self, size: (2, None), raising=False)
    with pytest.raises(MemoryError):
        engine.allocate("past.0.key", {})


def on_device(home: Device, array: np.ndarray) -> TrtBuffer:
    found = TrtBuffer(home, array.shape, str(array.dtype))
    home.upload(found.address, array)
    return found


def gathering(home: Device, cuda: Cuda) -> TrtEngine:
    """An engine whose inputs are rows of WIDTH numbers."""
    inputs = tuple(TensorSpec(name, "float32", (1, ROWS, WIDTH)) for name in ("rows", "projected"))
    return TrtEngine(TRT, Plan(cuda), GraphSpec("any", inputs, ()), home, cuda_graphs=False)


def test_rows_on_the_device_are_gathered_there_run_by_run(cuda: Cuda) -> None:
    home, random = Device(), np.random.default_rng(0)
    engine = gathering(home, cuda)
    one, other, table = (random.standard_normal((1, 6, WIDTH)).astype("float32") for _ in range(3))
    rows = Rows.join([Rows(on_device(home, one)), Rows(table), Rows(on_device(home, other))])
    index = np.array([1, 2, 3, 7, 11, 5, 14, 15, 12])  # 3 neighbours, 2 of the table, 1, then 2 and 1
    cuda.copied.clear()
    found = engine.gather("rows", rows.take(index))
    sizes = [(kind.removeprefix("cudaMemcpy"), size // (4 * WIDTH)) for kind, size in cuda.copied]
    assert sizes == [
        ("DeviceToDevice", 3),
        ("HostToDevice", 2),
        ("DeviceToDevice", 1),
        ("DeviceToDevice", 2),
        ("DeviceToDevice", 1),
    ]
    np.testing.assert_array_equal(found.numpy()[0], np.concatenate([one, table, other], axis=1)[0, index])


def test_rows_of_the_host_are_cast_and_stay_until_they_are_fed(cuda: Cuda) -> None:
    engine = gathering(Device(), cuda)
    found = engine.gather("rows", Rows(np.ones((1, 4, WIDTH), "float16")).take([2]))
    assert isinstance(found, np.ndarray) and found.dtype == np.float32 and found.shape == (1, 1, WIDTH)
    assert not cuda.copied


def test_rows_on_the_device_have_the_dtype_of_the_input(cuda: Cuda) -> None:
    home = Device()
    rows = Rows(on_device(home, np.ones((1, 4, WIDTH), "float16")))
    with pytest.raises(ValueError, match=r"rows of rows on the device are float16 \| expected float32"):
        gathering(home, cuda).gather("rows", rows)


class Host(np.ndarray):
    """A buffer of an engine whose memory is the host's."""

    def numpy(self) -> np.ndarray:
        return np.asarray(self)


class Pruner:
    """An engine that leaves random rows of random tokens. ``place``: where it computes."""

    def __init__(self, place: Place, gather: Gather) -> None:
        keep = TensorSpec("keep", "int64")
        self.spec = GraphSpec(
            "pruner", (keep, *(TensorSpec(n, "float32") for n in ("view", "projected"))), ()
        )
        self.place, self.gather, self.random = place, gather, np.random.default_rng(1)
        self.fed: list[Any] = []

    def run(self, feeds: dict[str, Any]) -> dict[str, Any]:
        self.fed.append(feeds["projected"])
        share, size = int(feeds["keep"]), feeds["view"].size
        count = max(1, share - 1)  # as of a method that may leave less than its budget
        kept = np.full((1, share), -1)
        kept[0, :count] = np.sort(self.random.permutation(size)[:count])
        tokens = self.random.standard_normal((1, share, WIDTH)).astype("float32")
        found = {"tokens": tokens, "kept": kept, "count": np.array([count])}
        return {name: self.place(each) for name, each in found.items()}


def after_vision(
    kind: str, place: Place, gather: Gather, folder: Path
) -> tuple[list[VisualTokens], list[Any]]:
    """Encode two images in tiles, or in two steps if ``kind`` is "steps"; also return the pruner's feeds."""
    random = np.random.default_rng(2)
    method = MethodInfo("some", ("pruner",), fixed_keep=5 if kind == "merged" else None)
    np.save(folder / "image_newline.npy", random.standard_normal(WIDTH).astype("float16"))
    settings = {"kind": "anyres", "tile": 4, "pinpoints": [[4, 8], [8, 4], [8, 8]]}
    manifest = SimpleNamespace(image=settings, grid=(4, 4), method=method, num_visual_tokens=16)
    pruner = Pruner(place, gather)
    engines = {"vision_encoder": None} | ({"pruner": pruner} if kind in ("pruned", "steps") else {})
    bundle = SimpleNamespace(manifest=manifest, file=lambda name: folder / name)
    vision, found = VisionStages(bundle, engines, None, None), []
    for size in ((90, 61), (40, 80)):
        plan = image_processor(settings).token_layout(size, (4, 4))
        tokens = random.standard_normal((plan.tiles, 16, WIDTH)).astype("float32")
        outputs: dict[str, Any] = {"projected": place(tokens)}
        if kind == "steps":
            plan = single((8, 4))
            outputs = {"projected": Rows.join([Rows(place(tokens[:1])), Rows(place(tokens[1:2]))])}
        elif kind == "merged":
            kept = np.sort(random.permuted(np.tile(np.arange(16), (plan.tiles, 1)), axis=1)[:, :5], axis=1)
            left = {"tokens": tokens[:, :5].copy(), "kept": kept, "count": np.full(plan.tiles, 5)}
            owner = random.integers(-1, 5, (plan.tiles, 16))
            outputs = {name: place(each) for name, each in (left | {"owner": owner}).items()}
        found.append(vision.prune(ImageFeatures(outputs, plan, None), {}, plan.total - 1, Clock()))
    return found, pruner.fed


@pytest.mark.parametrize("kind", ["whole", "pruned", "merged", "steps"])
def test_tokens_stay_on_the_device_from_the_encoder_to_the_prompt(
    kind: str, cuda: Cuda, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And they are those that are put together where everything lies in the host's memory."""
    home, whole = Device(), TrtBuffer.numpy
    text = Rows(np.random.default_rng(3).standard_normal((1, 9, WIDTH)).astype("float16"))

    def integers(buffer: TrtBuffer) -> np.ndarray:
        assert buffer.dtype == "int64", "tokens are copied to the host"
        return whole(buffer)

    def prompt(place: Place, gather: Gather) -> list[Any]:
        (one, other), fed = after_vision(kind, place, gather, tmp_path)
        rows = Rows.join([text.take([1, 2]), one.tokens, text.take([4]), other.tokens, text.take([0, 8])])
        parts = [gather("rows", rows.take(part)) for part in np.array_split(np.arange(len(rows)), 3)]
        return [*parts, *fed]

    with monkeypatch.context() as patch:
        patch.setattr(TrtBuffer, "numpy", integers)
        got = prompt(lambda array: on_device(home, array), gathering(home, cuda).gather)
    expected = prompt(
        lambda array: array.view(Host), lambda name, rows: rows.numpy("float32")[None].view(Host)
    )
    assert all(isinstance(each, TrtBuffer) for each in got)
    for mine, theirs in zip(got, expected, strict=True):
        np.testing.assert_array_equal(mine.numpy(), theirs)


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

"""Execution of a plan, on doubles that fail where a GPU would not, or not at once.

What is bound where, what is allocated, which profile runs, what a CUDA graph replays. TensorRT itself
is tested by ``test_gpu``.
"""

from __future__ import annotations

import gc
import json
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from cuda_double import Cuda
from onnx import TensorProto, helper, numpy_helper
from tensorrt_double.binding import Binding
from tensorrt_double.runtime import SCRATCH, Context, Engine

from foveate.engines.errors import NoMemoryError, RefusedError, UserError
from foveate.engines.row_gather import Rows
from foveate.engines.spec import GraphSpec, Symbol, TensorSpec
from foveate.engines.trt import builder, runner
from foveate.engines.trt.cuda.device import Device, TrtBuffer, device
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
ROWS, CACHE, HEADS, WIDTH = Symbol("tokens", 1, 4, 8), 8, 2, 3
PAST = 1, HEADS, CACHE, WIDTH


def spec(appending: bool = False) -> GraphSpec:
    past = TensorSpec("past.0.key", "float32", PAST)
    found = GraphSpec(
        "llm.0",
        (TensorSpec("rows", "float32", (1, ROWS, WIDTH)), TensorSpec("write_index", "int64", (1,)), past),
        (TensorSpec("total", "float32", (1,)), TensorSpec("present.0.key", "float32", PAST)),
        (("present.0.key", "past.0.key"),),
    )
    return found.appending() if appending else found


def save(file: Path, graph: GraphSpec, nodes: list[onnx.NodeProto], **constants: Any) -> Path:
    """Write the ONNX file of a graph whose nodes are given."""
    kinds = {"float32": TensorProto.FLOAT, "int64": TensorProto.INT64}

    def info(tensor: TensorSpec) -> onnx.ValueInfoProto:
        dims = [dim if isinstance(dim, int) else dim.name for dim in tensor.shape]
        return helper.make_tensor_value_info(tensor.name, kinds[tensor.dtype], dims)

    weights = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    sides = list(map(info, graph.inputs)), list(map(info, graph.outputs))
    made = helper.make_graph(nodes, graph.name, *sides, weights)
    onnx.save(helper.make_model(made, opset_imports=[helper.make_opsetid("", 24)], ir_version=11), file)
    return file


def summing(file: Path, graph: GraphSpec) -> Path:
    """Write a graph that puts its rows, plus one, into the cache, and answers the sum of the cache."""
    nodes = [
        helper.make_node("Add", ["rows", "one"], ["more"]),
        helper.make_node("Unsqueeze", ["more", "axis"], ["single"]),
        helper.make_node("Expand", ["single", "heads"], ["present.0.key" if graph.appends else "new"]),
    ]
    past, present = "past.0.key", "present.0.key"
    if not graph.appends:
        nodes.append(helper.make_node("TensorScatter", [past, "new", "write_index"], [present], axis=2))
    summed = past if graph.appends else present
    nodes.append(helper.make_node("ReduceSum", [summed, "rest"], ["sum"], keepdims=0))
    # so that every input is used, which TensorRT demands
    nodes.append(helper.make_node("Cast", ["write_index"], ["index"], to=TensorProto.FLOAT))
    nodes += [
        helper.make_node("Mul", ["index", "zero"], ["no"]),
        helper.make_node("Add", ["sum", "no"], ["total"]),
    ]
    return save(
        file, graph, nodes, one=np.float32(1), zero=np.float32(0), axis=[1], rest=[1, 2, 3],
        heads=np.array([1, HEADS, 1, 1]),
    )  # fmt: skip


def loaded(trt: Binding, source: Path, graph: GraphSpec, **options: Any) -> TrtEngine:
    """Build a plan, and load it."""
    options, plan = {"max_context": CACHE, **options}, source.with_suffix(".plan")
    facts = builder.build(trt, source, graph, options, plan)
    plan.with_suffix(".json").write_text(json.dumps(facts))
    return runner.load(trt, "tensorrt", plan, graph, options)


def summer(trt: Binding, folder: Path, appending: bool = False, **options: Any) -> TrtEngine:
    return loaded(trt, summing(folder / "llm.onnx", spec(appending)), spec(appending), **options)


def inner(engine: TrtEngine) -> Engine:
    """TensorRT's engine, which is the double's."""
    return engine._contexts[0].context.engine


def feeds(count: int, start: int) -> dict[str, np.ndarray]:
    return {"rows": np.full((1, count, WIDTH), start, "float32"), "write_index": np.array([start])}


def steps(engine: TrtEngine, cuda: Cuda, past: Any = None) -> tuple[list[float], list[Counter[str]]]:
    """A prompt of three rows and four steps: the answers, and the calls of CUDA that each took."""
    past, start, answers, calls = past or engine.allocate("past.0.key", {}), 0, [], []
    for count in (3, 1, 1, 1, 1):
        cuda.calls.clear()
        outputs = engine.run({**feeds(count, start), "past.0.key": past})
        assert outputs["present.0.key"] is past
        answers.append(float(outputs["total"].numpy()[0]))
        calls.append(Counter(cuda.calls))
        start += count
    return answers, calls


def expected(before: bool) -> list[float]:
    """The sums of the cache behind each step, or ``before`` the step's rows are in it."""
    ends = np.cumsum([3 * 1, 4, 5, 6, 7]) * HEADS * WIDTH
    return [0.0, *ends[:-1].tolist()] if before else ends.tolist()


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


def prompt_of(engine: TrtEngine, count: int) -> float:
    past = engine.allocate("past.0.key", {})
    return float(engine.run({**feeds(count, 0), "past.0.key": past})["total"].numpy()[0])


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


def test_one_logger_and_one_runtime(binding: Binding, cuda: Cuda, tmp_path: Path) -> None:
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        summer(binding, tmp_path / name)
    assert len(binding.loggers) == len(binding.runtimes) == 1


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


def on_device(home: Device, array: np.ndarray) -> TrtBuffer:
    found = TrtBuffer(home, array.shape, str(array.dtype))
    home.upload(found.address, array)
    return found


def gathering(folder: Path) -> TrtEngine:
    """An engine whose inputs are rows of WIDTH numbers."""
    shape = (1, ROWS, WIDTH)
    inputs = tuple(TensorSpec(name, "float32", shape) for name in ("rows", "projected"))
    graph = GraphSpec("any", inputs, (TensorSpec("sum", "float32", shape),))
    node = helper.make_node("Add", ["rows", "projected"], ["sum"])
    return loaded(Binding(device()._cuda), save(folder / "any.onnx", graph, [node]), graph)


def test_rows_on_the_device_are_gathered_there_run_by_run(cuda: Cuda, tmp_path: Path) -> None:
    engine = gathering(tmp_path)
    home, random = device(), np.random.default_rng(0)
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


def test_rows_of_the_host_are_cast_and_stay_until_they_are_fed(cuda: Cuda, tmp_path: Path) -> None:
    engine = gathering(tmp_path)
    cuda.copied.clear()
    found = engine.gather("rows", Rows(np.ones((1, 4, WIDTH), "float16")).take([2]))
    assert isinstance(found, np.ndarray) and found.dtype == np.float32 and found.shape == (1, 1, WIDTH)
    assert not cuda.copied


def test_rows_on_the_device_have_the_dtype_of_the_input(cuda: Cuda, tmp_path: Path) -> None:
    engine = gathering(tmp_path)
    rows = Rows(on_device(device(), np.ones((1, 4, WIDTH), "float16")))
    with pytest.raises(ValueError, match=r"rows of rows on the device are float16 \| expected float32"):
        engine.gather("rows", rows)


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
    engine, whole = gathering(tmp_path), TrtBuffer.numpy
    home = device()
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
        got = prompt(lambda array: on_device(home, array), engine.gather)
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

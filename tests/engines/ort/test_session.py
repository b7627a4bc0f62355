"""ONNX Runtime: it computes the graph, writes the cache in place, and is bound to its machine."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from foveate.engines.errors import UserError
from foveate.engines.ort import backend, session
from foveate.engines.ort.backend import OnnxRuntime
from foveate.engines.spec import GraphSpec, Symbol, TensorSpec

HEADS, WIDTH, ROWS = 2, 64, 64
COPYING = "in-place optimization not activated"

SPEC = GraphSpec(
    "toy",
    (
        TensorSpec("x", "float32", (1, Symbol("tokens", 1, 4, ROWS), HEADS * WIDTH)),
        TensorSpec("write_index", "int64", (1,)),
        TensorSpec("past", "float32", (1, HEADS, Symbol("cache", 1, 16, ROWS), WIDTH)),
    ),
    (
        TensorSpec("y", "float32", (1, Symbol("tokens", 1, 4, ROWS), HEADS * WIDTH)),
        TensorSpec("present", "float32", (1, HEADS, Symbol("cache", 1, 16, ROWS), WIDTH)),
    ),
    (("present", "past"),),
)


def toy(path: Path, block: int | None = None) -> np.ndarray:
    """Write ``y = attention(x @ W)`` and return W, in int4 if ``block`` is given.

    The cache serves as keys and values.
    """
    size = HEADS * WIDTH
    weight = np.random.default_rng(0).standard_normal((size, size)).astype(np.float32) * size**-0.5
    nodes, tensors = [], [numpy_helper.from_array(np.array([0, -1, HEADS, WIDTH]), "split")]
    if block is None:
        tensors.append(numpy_helper.from_array(weight, "w"))
    else:
        blocks = weight.reshape(size // block, block, size)
        scales = np.abs(blocks).max(axis=1) / 7
        codes = np.round(blocks / scales[:, None]).astype(np.int8).reshape(size, size)
        weight = (codes.reshape(blocks.shape) * scales[:, None]).reshape(size, size)
        packed = (codes.reshape(-1)[0::2] & 15) | (codes.reshape(-1)[1::2] & 15) << 4
        tensors.append(
            helper.make_tensor(
                "codes", TensorProto.INT4, [size, size], packed.astype(np.uint8).tobytes(), raw=True
            )
        )
        tensors.append(numpy_helper.from_array(scales, "scales"))
        nodes.append(
            helper.make_node("DequantizeLinear", ["codes", "scales"], ["w"], axis=0, block_size=block)
        )
    nodes += [
        helper.make_node("MatMul", ["x", "w"], ["projected"]),
        helper.make_node("Reshape", ["projected", "split"], ["rows"]),
        helper.make_node("Transpose", ["rows"], ["heads"], perm=[0, 2, 1, 3]),
        helper.make_node("TensorScatter", ["past", "heads", "write_index"], ["present"], axis=2),
        helper.make_node("Shape", ["x"], ["new"], start=1, end=2),
        helper.make_node("Add", ["new", "write_index"], ["filled"]),
        helper.make_node(
            "Attention", ["heads", "present", "present", "", "", "", "filled"], ["mixed"], is_causal=1
        ),
        helper.make_node("Transpose", ["mixed"], ["turned"], perm=[0, 2, 1, 3]),
        helper.make_node("Reshape", ["turned", "joined"], ["y"]),
    ]
    tensors.append(numpy_helper.from_array(np.array([0, -1, size]), "joined"))
    kinds = {"float32": TensorProto.FLOAT, "int64": TensorProto.INT64}

    def infos(specs: tuple[TensorSpec, ...]) -> list[onnx.ValueInfoProto]:
        return [
            helper.make_tensor_value_info(
                s.name, kinds[s.dtype], [d if isinstance(d, int) else d.name for d in s.shape]
            )
            for s in specs
        ]

    graph = helper.make_graph(nodes, "toy", infos(SPEC.inputs), infos(SPEC.outputs), tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 24)], ir_version=11)
    onnx.save(model, path, save_as_external_data=True, location=f"{path.stem}.data", size_threshold=1024)
    return weight


def attention(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    heads = (x[0] @ weight).reshape(len(x[0]), HEADS, WIDTH).transpose(1, 0, 2)
    scores = heads @ heads.transpose(0, 2, 1) * WIDTH**-0.5
    scores += np.triu(np.full(scores.shape[1:], -np.inf), 1)
    chances = np.exp(scores - scores.max(-1, keepdims=True))
    chances /= chances.sum(-1, keepdims=True)
    return (chances @ heads).transpose(1, 0, 2).reshape(x.shape)


def make(folder: Path, block: int | None = None, **options: object) -> tuple[session.OrtEngine, np.ndarray]:
    weight = toy(folder / "source.onnx", block)
    OnnxRuntime().compile_graph(folder / "source.onnx", folder / "out", SPEC, options)
    return OnnxRuntime().load(folder / "out", SPEC, {"threads": 1, "log_severity": 2, **options}), weight


def stepped(engine: session.OrtEngine, x: np.ndarray, first: int) -> tuple[np.ndarray, session.OrtBuffer]:
    """``first`` rows at once, then one at a time, over one cache."""
    cache = engine.allocate("past", {"cache": ROWS})
    pieces, at = [], 0
    for rows in (first, *[1] * (x.shape[1] - first)):
        feeds = {"x": x[:, at : at + rows], "write_index": np.array([at]), "past": cache}
        outputs = engine.run(feeds)
        assert outputs["present"] is cache
        pieces.append(outputs["y"].numpy().copy())
        at += rows
    return np.concatenate(pieces, axis=1), cache


@pytest.mark.parametrize("block", [None, 32])
def test_compiled_engine_is_the_graph_and_copies_no_cache(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], block: int | None
) -> None:
    engine, weight = make(tmp_path, block, accuracy_level=1)
    x = np.random.default_rng(1).standard_normal((1, 20, HEADS * WIDTH)).astype(np.float32)
    y, cache = stepped(engine, x, first=9)
    np.testing.assert_allclose(y, attention(x, weight), atol=2e-5)
    rows = (x[0] @ weight).reshape(20, HEADS, WIDTH).transpose(1, 0, 2)
    np.testing.assert_allclose(cache.numpy()[0, :, :20], rows, atol=2e-5)
    assert not cache.numpy()[0, :, 20:].any()
    assert COPYING not in capfd.readouterr().err


def test_onnx_runtime_says_when_it_copies(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The line that the other tests miss is really there when past and present are two buffers."""
    engine, _ = make(tmp_path)
    binding = engine.session.io_binding()
    binding.bind_cpu_input("x", np.ones((1, 1, HEADS * WIDTH), np.float32))
    binding.bind_cpu_input("write_index", np.zeros(1, np.int64))
    binding.bind_ortvalue_input("past", engine.allocate("past", {"cache": ROWS}).value)
    binding.bind_output("y")
    binding.bind_output("present")
    engine.session.run_with_iobinding(binding)
    assert COPYING in capfd.readouterr().err


def test_accuracy_level_4_rounds_activations_and_little_more(tmp_path: Path) -> None:
    x = np.random.default_rng(1).standard_normal((1, 20, HEADS * WIDTH)).astype(np.float32)
    (tmp_path / "fast").mkdir()
    (tmp_path / "exact").mkdir()
    fast, weight = make(tmp_path / "fast", 32, accuracy_level=4)
    exact, _ = make(tmp_path / "exact", 32, accuracy_level=1)
    truth = attention(x, weight)
    errors = [
        np.abs(stepped(engine, x, 20)[0] - truth).max() / np.abs(truth).max() for engine in (exact, fast)
    ]
    assert errors[0] < 1e-5
    assert 1e-4 < errors[1] < 0.03


def test_weights_are_prepacked_on_disk_and_mapped(tmp_path: Path) -> None:
    toy(tmp_path / "source.onnx", 32)
    OnnxRuntime().compile_graph(tmp_path / "source.onnx", tmp_path / "out", SPEC, {})
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["toy.data", "toy.onnx"]
    compiled = onnx.load(tmp_path / "out" / "toy.onnx", load_external_data=False)
    assert "MatMulNBits" in {node.op_type for node in compiled.graph.node}
    keys = {
        entry.key.rsplit("_", 1)[0] for tensor in compiled.graph.initializer for entry in tensor.external_data
    }
    assert "prepacked" in keys, keys
    engine = OnnxRuntime().load(tmp_path / "out", SPEC, {})
    if Path("/proc/self/maps").exists():
        assert str(tmp_path / "out" / "toy.data") in Path("/proc/self/maps").read_text()
    del engine


def test_cache_grows_with_its_content(tmp_path: Path) -> None:
    engine, _ = make(tmp_path)
    old = np.random.default_rng(2).standard_normal((1, HEADS, 5, WIDTH)).astype(np.float32)
    grown = engine.allocate("past", {"cache": 12}, old)
    assert grown.shape == (1, HEADS, 12, WIDTH)
    assert grown.dtype == "float32"
    assert grown.nbytes == HEADS * 12 * WIDTH * 4
    np.testing.assert_array_equal(grown.numpy()[:, :, :5], old)
    assert not grown.numpy()[:, :, 5:].any()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"x": np.zeros((1, 1, 5), np.float32)}, "x has shape"),
        ({"x": np.zeros((1, 1, HEADS * WIDTH))}, "float64"),
        ({"z": np.zeros(1)}, "no such input"),
        ({"past": np.zeros((1, HEADS, 8, WIDTH), np.float32)}, "in place"),
    ],
)
def test_feeds_are_checked_before_launch(tmp_path: Path, change: dict, words: str) -> None:
    engine, _ = make(tmp_path)
    feeds = {
        "x": np.zeros((1, 1, HEADS * WIDTH), np.float32),
        "write_index": np.zeros(1, np.int64),
        "past": engine.allocate("past", {"cache": 8}),
    }
    with pytest.raises(ValueError, match=words):
        engine.run({**feeds, **change})


def test_non_contiguous_feeds_are_taken(tmp_path: Path) -> None:
    engine, weight = make(tmp_path)
    x = np.random.default_rng(1).standard_normal((HEADS * WIDTH, 6, 1)).astype(np.float32).T
    cache = engine.allocate("past", {"cache": 6})
    y = engine.run({"x": x, "write_index": np.zeros(1, np.int64), "past": cache})["y"].numpy()
    np.testing.assert_allclose(y, attention(np.ascontiguousarray(x), weight), atol=2e-5)


def test_machine_and_key(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = OnnxRuntime().machine({})
    assert machine["provider"] == "cpu"
    assert OnnxRuntime().key(machine).startswith(f"onnxruntime-{machine['version']}-cpu-")
    assert "/" not in OnnxRuntime().key(machine)
    with pytest.raises(UserError, match="did you mean cuda"):
        OnnxRuntime().machine({"provider": "cudda"})
    monkeypatch.setattr(backend.onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(UserError, match="no CUDAExecutionProvider"):
        OnnxRuntime().machine({"provider": "cuda"})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "processor\t: 0\nflags\t\t: fpu avx avx2 fma avx512f avx512_vnni\n",
            ["avx512_vnni", "avx512f", "avx2", "fma", "avx"],
        ),
        ("processor\t: 0\nFeatures\t: fp asimd aes asimdhp asimddp\n", ["asimddp", "asimdhp", "asimd"]),
    ],
)
def test_instruction_sets(tmp_path: Path, text: str, expected: list[str]) -> None:
    (tmp_path / "cpuinfo").write_text(text)
    assert backend._instructions(tmp_path / "cpuinfo") == expected


def test_a_graph_that_onnx_runtime_refuses(tmp_path: Path) -> None:
    (tmp_path / "bad.onnx").write_bytes(b"no graph")
    with pytest.raises(UserError, match=r"does not take bad\.onnx"):
        OnnxRuntime().compile_graph(tmp_path / "bad.onnx", tmp_path / "out", SPEC, {})
    with pytest.raises(UserError, match="cannot load toy"):
        OnnxRuntime().load(tmp_path / "out", SPEC, {})


def test_large_runs_give_their_memory_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, weight = make(tmp_path)
    given: list[str | None] = []
    run = engine.session.run_with_iobinding

    def spy(binding: object, options: backend.onnxruntime.RunOptions | None) -> None:
        entry = "memory.enable_memory_arena_shrinkage"
        given.append(options.get_run_config_entry(entry) if options else None)
        run(binding, options)

    monkeypatch.setattr(engine.session, "run_with_iobinding", spy)
    monkeypatch.setattr(session, "_LARGE", 10 * HEADS * WIDTH * 4)
    x = np.random.default_rng(1).standard_normal((1, 22, HEADS * WIDTH)).astype(np.float32)
    y, _ = stepped(engine, x, first=20)
    assert given == ["cpu:0", None, None]
    np.testing.assert_allclose(y, attention(x, weight), atol=2e-5)
    rows = engine.allocate("x", {"tokens": 20}, x[:, :20])  # as the stage before would hand it on
    cache = engine.allocate("past", {"cache": ROWS})
    engine.run({"x": rows, "write_index": np.array([0]), "past": cache})
    assert given[3:] == ["cpu:0"]


def test_an_engine_at_rest_leaves_the_processor_to_others(tmp_path: Path) -> None:
    """Workers that spin after a run would take cores from the engine of the next stage."""
    engine, _ = make(tmp_path, threads=2)
    x = np.ones((1, ROWS, HEADS * WIDTH), np.float32)
    shares = []
    for _ in range(5):
        stepped(engine, x, first=ROWS)
        start, used = time.perf_counter(), time.process_time()
        time.sleep(0.02)
        shares.append((time.process_time() - used) / (time.perf_counter() - start))
    assert min(shares) < 0.1, shares


def test_the_dialect_primitive_in_onnx_runtime(tmp_path: Path) -> None:
    """New rows are copied into the cache: the same answers as from the dialect that writes in place."""
    engine = OnnxRuntime().load(tmp_path, appending(tmp_path), {})
    buffer = engine.allocate("past.0.key", {"cache": 6})
    for start in (0, 2):
        rows = np.full((1, 2, 2, 4), start + 1, "float32")
        feeds = {"rows": rows, "write_index": np.array([start]), "past.0.key": buffer}
        outputs = engine.run(feeds)
        assert outputs["present.0.key"] is buffer
    assert buffer.numpy()[0, 0, :, 0].tolist() == [1, 1, 3, 3, 0, 0]
    assert outputs["total"].numpy()[0] == 2 * 4 * 2  # what was in the cache before: 1 in the first two rows


def appending(folder: Path) -> GraphSpec:
    tokens, cache = Symbol("tokens", 1, 2, 8), Symbol("cache", 1, 6, 8)
    rows, past = (1, 2, tokens, 4), (1, 2, cache, 4)
    spec = GraphSpec(
        "llm",
        (
            TensorSpec("rows", "float32", rows),
            TensorSpec("write_index", "int64", (1,)),
            TensorSpec("past.0.key", "float32", past),
        ),
        (TensorSpec("total", "float32", (1,)), TensorSpec("present.0.key", "float32", rows)),
        (("present.0.key", "past.0.key"),),
    )
    info = helper.make_tensor_value_info
    nodes = [
        helper.make_node("ReduceSum", ["past.0.key"], ["sum"], keepdims=0),
        helper.make_node("Cast", ["write_index"], ["float_index"], to=TensorProto.FLOAT),
        helper.make_node("Sub", ["float_index", "float_index"], ["zero"]),
        helper.make_node("Add", ["zero", "sum"], ["total"]),
        helper.make_node("Identity", ["rows"], ["present.0.key"]),
    ]
    graph = helper.make_graph(
        nodes,
        "llm",
        [
            info("rows", TensorProto.FLOAT, [1, 2, "tokens", 4]),
            info("write_index", TensorProto.INT64, [1]),
            info("past.0.key", TensorProto.FLOAT, [1, 2, "cache", 4]),
        ],
        [
            info("total", TensorProto.FLOAT, [1]),
            info("present.0.key", TensorProto.FLOAT, [1, 2, "tokens", 4]),
        ],
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9),
        folder / "llm.onnx",
    )
    return spec

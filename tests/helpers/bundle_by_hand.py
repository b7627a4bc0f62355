"""A bundle by hand: small ONNX graphs with random weights, a byte-level tokenizer, a manifest. No torch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from foveate.engines.ort.backend import onnxruntime
from foveate.engines.spec import FLOAT, GraphSpec, Symbol, TensorSpec
from foveate.runtime.bundle.loading import write_manifest
from foveate.runtime.compiling.compile import compile_bundle

SIDE, GRID, PATCH = 8, 4, 2
N, D, HEADS, KV, DH, LAYERS, POSITIONS = 16, 32, 4, 2, 8, 2, 128
VOCAB = 260
IMAGE_ID, BOS, STOP = 256, 257, 258


class GraphMaker:
    """Collects nodes and initializers of one graph."""

    def __init__(self, seed: int) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.random = np.random.default_rng(seed)

    def const(self, name: str, value: Any, dtype: str = "float32") -> str:
        self.initializers.append(numpy_helper.from_array(np.asarray(value, dtype), name))
        return name

    def op(self, kind: str, inputs: list[str], output: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(kind, inputs, [output], **attributes))
        return output

    def linear(self, x: str, name: str, rows: int, columns: int) -> str:
        weight = self.random.standard_normal((rows, columns)) * 1.5 * rows**-0.5
        return self.op("MatMul", [x, self.const(f"{name}.weight", weight)], f"{name}.out")

    def save(self, path: Path, spec: GraphSpec) -> None:
        def info(t: TensorSpec) -> onnx.ValueInfoProto:
            kind = TensorProto.FLOAT if t.dtype == FLOAT else TensorProto.INT64
            shape = [d if isinstance(d, int) else d.name for d in t.shape]
            return helper.make_tensor_value_info(t.name, kind, shape)

        graph = helper.make_graph(
            self.nodes,
            spec.name,
            list(map(info, spec.inputs)),
            list(map(info, spec.outputs)),
            self.initializers,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 24)], ir_version=11)
        onnx.checker.check_model(model)
        path.parent.joinpath("weights").mkdir(exist_ok=True)
        onnx.save(
            model, path, save_as_external_data=True, location=f"weights/{spec.name}.data", size_threshold=256
        )


def vision_encoder(path: Path) -> GraphSpec:
    spec = GraphSpec(
        "vision_encoder",
        (TensorSpec("pixel_values", FLOAT, (1, 3, SIDE, SIDE)),),
        (TensorSpec("projected", FLOAT, (1, N, D)), TensorSpec("cls_attention.1", FLOAT, (1, N))),
    )
    g = GraphMaker(1)
    weight = g.const("patch.weight", g.random.standard_normal((D, 3, PATCH, PATCH)))
    patches = g.op("Conv", ["pixel_values", weight], "patches", strides=[PATCH, PATCH])
    rows = g.op("Reshape", [patches, g.const("rows", [1, D, N], "int64")], "columns")
    g.op("Transpose", [rows], "projected", perm=[0, 2, 1])
    g.op("ReduceMean", ["projected", g.const("last", [2], "int64")], "cls_attention.1", keepdims=0)
    g.save(path, spec)
    return spec


def pruner(path: Path) -> GraphSpec:
    """Scores: the tap plus relevance, the products with the mean of the words' embeddings."""
    keep, words = Symbol("keep", 1, 3, N), Symbol("words", 1, 4, 64)
    spec = GraphSpec(
        "pruner",
        (
            TensorSpec("keep", "int64", (), keep),
            TensorSpec("projected", FLOAT, (1, N, D)),
            TensorSpec("cls_attention.1", FLOAT, (1, N)),
            TensorSpec("text_embeds", FLOAT, (1, words, D)),
        ),
        (
            TensorSpec("tokens", FLOAT, (1, keep, D)),
            TensorSpec("kept", "int64", (1, keep)),
            TensorSpec("count", "int64", (1,)),
        ),
    )
    g = GraphMaker(2)
    one = g.const("one", [1], "int64")
    mean = g.op("ReduceMean", ["text_embeds", one], "mean", keepdims=1)
    column = g.op("Transpose", [mean], "column", perm=[0, 2, 1])
    relevance = g.op("MatMul", ["projected", column], "relevance")
    flat = g.op("Reshape", [relevance, g.const("flat", [1, N], "int64")], "flattened")
    score = g.op("Add", [flat, "cls_attention.1"], "score")
    k = g.op("Reshape", ["keep", one], "k")
    g.nodes.append(helper.make_node("TopK", [score, k], ["best", "index"], axis=1))
    g.nodes.append(helper.make_node("TopK", ["index", k], ["kept", "order"], axis=1, largest=0))
    rows = g.op("Squeeze", ["kept", g.const("zero", [0], "int64")], "rows")
    g.op("Gather", ["projected", rows], "tokens", axis=1)
    g.op("Identity", [k], "count")
    g.save(path, spec)
    return spec


def llm(path: Path, fault: str = "") -> GraphSpec:
    """A LLaMA-like decoder in the ``ort`` dialect: TensorScatter, causal Attention with ``nonpad_kv_seqlen``.

    ``fault`` plants one: "mask", "swap" (keys and values), "stale" (cache), "scale" or "rope".
    """
    length, cache = Symbol("tokens", 1, 8, POSITIONS), Symbol("cache", 1, 32, POSITIONS)
    names = [f"{i}.{kind}" for i in range(LAYERS) for kind in ("key", "value")]
    spec = GraphSpec(
        "llm",
        (
            TensorSpec("inputs_embeds", FLOAT, (1, length, D)),
            TensorSpec("position_ids", "int64", (1, length)),
            TensorSpec("write_index", "int64", (1,)),
            TensorSpec("last", "int64", (1,)),
            *(TensorSpec(f"past.{n}", FLOAT, (1, KV, cache, DH)) for n in names),
        ),
        (
            TensorSpec("logits", FLOAT, (1, 1, VOCAB)),
            *(TensorSpec(f"present.{n}", FLOAT, (1, KV, cache, DH)) for n in names),
        ),
        tuple((f"present.{n}", f"past.{n}") for n in names),
    )
    g = GraphMaker(3)
    angles = np.arange(POSITIONS)[:, None] / 10000 ** (np.arange(0, DH, 2) / DH)
    g.const("cos", np.cos(angles))
    g.const("sin", np.sin(angles))
    new = g.op("Shape", ["inputs_embeds"], "new_rows", start=1, end=2)
    filled = g.op("Add", ["write_index", new], "filled")
    joined = g.const("joined", [0, -1, HEADS * DH], "int64")
    x = "inputs_embeds"
    for i in range(LAYERS):
        normed = g.op("RMSNormalization", [x, g.const(f"{i}.norm", np.ones(D))], f"{i}.normed")
        heads: dict[str, str] = {}
        for kind, count in (("q", HEADS), ("k", KV), ("v", KV)):
            y = g.linear(normed, f"{i}.{kind}", D, count * DH)
            shape = g.const(f"{i}.{kind}.shape", [0, -1, count, DH], "int64")
            split = g.op("Reshape", [y, shape], f"{i}.{kind}.split")
            heads[kind] = g.op("Transpose", [split], f"{i}.{kind}.heads", perm=[0, 2, 1, 3])
        for kind in "qk" if fault != "rope" else "q":
            heads[kind] = g.op(
                "RotaryEmbedding", [heads[kind], "cos", "sin", "position_ids"], f"{i}.{kind}.turned"
            )
        for kind, name in (("k", "key"), ("v", "value")):
            at = "write_index" if fault != "stale" or i == 0 else g.const(f"{i}.{name}.at", [0], "int64")
            inputs = [f"past.{i}.{name}", heads[kind], at]
            heads[kind] = g.op("TensorScatter", inputs, f"present.{i}.{name}", axis=2)
        if fault == "swap" and i:
            heads["k"], heads["v"] = heads["v"], heads["k"]
        attributes = {"is_causal": int(fault != "mask"), **({"scale": 0.5} if fault == "scale" and i else {})}
        inputs = [heads["q"], heads["k"], heads["v"], "", "", "", filled]
        mixed = g.op("Attention", inputs, f"{i}.mixed", **attributes)
        rows = g.op("Transpose", [mixed], f"{i}.rows", perm=[0, 2, 1, 3])
        x2 = g.op("Reshape", [rows, joined], f"{i}.joined")
        x = g.op("Add", [x, g.linear(x2, f"{i}.o", HEADS * DH, D)], f"{i}.x")
    row = g.op("Gather", [x, "last"], "row", axis=1)
    normed = g.op("RMSNormalization", [row, g.const("norm", np.ones(D))], "normed")
    g.op("Identity", [g.linear(normed, "head", D, VOCAB)], "logits")
    g.save(path, spec)
    return spec


def tokenizer(path: Path) -> None:
    """A token per byte; 0..255 are the bytes in the order of the byte-level alphabet."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE({letter: i for i, letter in enumerate(alphabet)}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(["<image>", "<s>", "</s>", "<pad>"])
    made.save(str(path))


def golden(root: Path, stages: list[str], prompt: int = 9, steps: int = 6) -> dict[str, np.ndarray]:
    """Return the answers of the graphs in ``root`` in plain sessions.

    The language model answers in one pass without a cache.
    """
    random = np.random.default_rng(7)
    arrays: dict[str, np.ndarray] = {}

    def half(x: np.ndarray) -> np.ndarray:
        return x.astype("float16").astype("float32")

    def run(stage: str, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        session = onnxruntime.InferenceSession(root / f"{stage}.ort.onnx", providers=["CPUExecutionProvider"])
        return dict(zip([o.name for o in session.get_outputs()], session.run(None, feeds), strict=True))

    def record(stage: str, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        answers = run(stage, feeds)
        arrays.update({f"{stage}.in.{name}": value for name, value in feeds.items()})
        arrays.update({f"{stage}.out.{name}": value for name, value in answers.items()})
        return answers

    pixels = half(random.standard_normal((1, 3, SIDE, SIDE)))
    seen = {name: half(value) for name, value in record("vision_encoder", {"pixel_values": pixels}).items()}
    if "pruner" in stages:
        words = half(random.standard_normal((1, 5, D)))
        record("pruner", {"keep": np.array(4), **seen, "text_embeds": words})
    total = prompt + steps
    feeds = {
        "inputs_embeds": half(random.standard_normal((1, total, D))),
        "position_ids": np.arange(total)[None],
    }
    cache = np.zeros((1, KV, total, DH), np.float32)
    past = {f"past.{i}.{kind}": cache for i in range(LAYERS) for kind in ("key", "value")}
    logits = []
    for row in range(prompt - 1, total):
        last = {"write_index": np.array([0]), "last": np.array([row])}
        answers = run("llm", {**feeds, **last, **past})
        logits.append(answers["logits"][0, 0])
    arrays.update({f"llm.in.{name}": value for name, value in feeds.items()})
    arrays.update({f"llm.out.{name}": v for name, v in answers.items() if name.startswith("present")})
    return arrays | {
        "llm.out.logits": np.stack(logits),
        "llm.prompt": np.int64(prompt),
        "llm.tokens": np.zeros(steps, np.int64),
    }


MakeBundle = Callable[..., Path]


@pytest.fixture(scope="session")
def make_bundle(tmp_path_factory: pytest.TempPathFactory) -> MakeBundle:
    """``make_bundle(prune=True, mode="compact", keep=None, fault="")`` -> a bundle's directory, not compiled.

    ``fault`` is planted in the language model after ``golden.npz`` was recorded.
    """

    def make(
        prune: bool = True, mode: str = "compact", keep: int | str | None = None, fault: str = ""
    ) -> Path:
        root = tmp_path_factory.mktemp("bundle")
        stages = ["vision_encoder", *(["pruner"] if prune else []), "llm"]
        makers = {"vision_encoder": vision_encoder, "pruner": pruner, "llm": llm}
        graphs = {name: makers[name](root / f"{name}.ort.onnx") for name in stages}
        np.savez(root / "golden.npz", **golden(root, stages))
        if fault:
            (root / "weights" / "llm.data").unlink()
            llm(root / "llm.ort.onnx", fault)
        random = np.random.default_rng(4)
        np.save(root / "embed_tokens.npy", random.standard_normal((VOCAB, D)).astype("float32"))
        tokenizer(root / "tokenizer.json")
        write_manifest(root, manifest(stages, graphs, mode, {} if keep is None else {"keep": keep}))
        return root

    return make


def manifest(
    stages: list[str], graphs: dict[str, GraphSpec], mode: str, method_options: dict[str, Any]
) -> dict[str, Any]:
    return {
        "name": "tiny.by-hand",
        "family": "llava",
        "source": {"model": "none", "revision": "none"},
        "methods": [
            {
                "name": "tap" if "pruner" in stages else "none",
                "stages": stages,
                "options": method_options,
                "position_mode": mode,
            }
        ],
        "precision": {"decoder": "fp32", "head": "fp32", "vision": "fp32"},
        "graphs": {name: spec.to_json() for name, spec in graphs.items()},
        "dialects": {"ort": {"dtype": "float32", "files": {n: f"{n}.ort.onnx" for n in stages}}},
        "num_visual_tokens": N,
        "grid": [GRID, GRID],
        "decoder": {
            "num_layers": LAYERS,
            "num_heads": HEADS,
            "num_kv_heads": KV,
            "head_dim": DH,
            "hidden_size": D,
            "intermediate_size": 0,  # it has no MLP
            "vocab_size": VOCAB,
            "max_positions": POSITIONS,
        },
        "image": {"kind": "clip", "resize": [SIDE, SIDE], "rescale": 1 / 255, "size": [SIDE, SIDE]},
        "prompt": {
            "roles": {"system": "", "user": "U: ", "assistant": "A: "},
            "image": "<image>\n",
            "order": "given",
            "after_text": " ",
            "generation": "A:",
            "image_token": "<image>",
            "image_token_id": IMAGE_ID,
            "bos_id": BOS,
            "stop_ids": [STOP],
            "pad_id": 259,
        },
    }


@pytest.fixture(scope="session")
def bundle(make_bundle: MakeBundle) -> Path:
    """A bundle with a pruner, compiled for ONNX Runtime on the CPU. Do not change it."""
    root = make_bundle()
    compile_bundle(root)
    return root


@pytest.fixture(scope="session")
def plain_bundle(make_bundle: MakeBundle) -> Path:
    """The same without a pruner."""
    root = make_bundle(prune=False)
    compile_bundle(root)
    return root


@pytest.fixture
def pixels() -> np.ndarray:
    """uint8 [8, 8, 3]."""
    return np.random.default_rng(5).integers(0, 256, (SIDE, SIDE, 3), np.uint8)

"""Graphs of a tiny model by hand: vision encoder, pruner, language model; random weights, no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from foveate.engines.spec import FLOAT, GraphSpec, Symbol, TensorSpec

SIDE, GRID, PATCH = 8, 4, 2
N, D, HEADS, KV, DH, LAYERS, POSITIONS = 16, 32, 4, 2, 8, 2, 128
VOCAB = 260


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


def _from_the_wrong_corner(g: GraphMaker, new: str, keys: str, name: str) -> str:
    """A causal mask bool [T,S] that is aligned with the first key, as in ONNX Runtime 1.25 to 1.27.

    Row i of several sees the keys 0..i, whatever is in the cache. A single row sees all of them, and a prompt
    at once is right.
    """
    zero, one = (g.const(f"{name}.{value}", value, "int64") for value in (0, 1))
    size = g.op("Shape", [keys], f"{name}.size", start=2, end=3)
    counted = {}
    for what, count in (("rows", new), ("columns", size)):
        whole = g.op("Squeeze", [count], f"{name}.{what}.count")
        counted[what] = g.op("Range", [zero, whole, one], f"{name}.{what}")
    single = g.op("Equal", [new, one], f"{name}.single")
    start = g.op("Where", [single, "write_index", zero], f"{name}.start")
    last = g.op("Add", [counted["rows"], start], f"{name}.last")
    column = g.op("Unsqueeze", [last, one], f"{name}.column")
    return g.op("LessOrEqual", [counted["columns"], column], f"{name}.mask")


def llm(path: Path, fault: str = "") -> GraphSpec:
    """A LLaMA-like decoder in the ``ort`` dialect: TensorScatter, causal Attention with ``nonpad_kv_seqlen``.

    ``fault`` plants one: "mask", "corner" (``_from_the_wrong_corner``), "swap" (keys and values), "stale"
    (cache), "scale" or "rope".
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
        causal = fault not in ("mask", "corner")
        attributes = {"is_causal": int(causal), **({"scale": 0.5} if fault == "scale" and i else {})}
        mask = _from_the_wrong_corner(g, new, heads["k"], f"{i}.corner") if fault == "corner" else ""
        inputs = [heads["q"], heads["k"], heads["v"], mask, "", "", filled]
        mixed = g.op("Attention", inputs, f"{i}.mixed", **attributes)
        rows = g.op("Transpose", [mixed], f"{i}.rows", perm=[0, 2, 1, 3])
        x2 = g.op("Reshape", [rows, joined], f"{i}.joined")
        x = g.op("Add", [x, g.linear(x2, f"{i}.o", HEADS * DH, D)], f"{i}.x")
    row = g.op("Gather", [x, "last"], "row", axis=1)
    normed = g.op("RMSNormalization", [row, g.const("norm", np.ones(D))], "normed")
    g.op("Identity", [g.linear(normed, "head", D, VOCAB)], "logits")
    g.save(path, spec)
    return spec

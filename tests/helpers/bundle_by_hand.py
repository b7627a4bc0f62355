"""A bundle by hand: small graphs (``graphs_by_hand``), a byte-level tokenizer, a manifest. No torch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from graphs_by_hand import (
    DH,
    GRID,
    HEADS,
    KV,
    LAYERS,
    POSITIONS,
    SIDE,
    VOCAB,
    D,
    N,
    llm,
    pruner,
    vision_encoder,
)
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from foveate.engines.ort.backend import onnxruntime
from foveate.engines.spec import GraphSpec
from foveate.runtime.bundle.loading import write_manifest
from foveate.runtime.compiling.compile import compile_bundle

IMAGE_ID, BOS, STOP = 256, 257, 258


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

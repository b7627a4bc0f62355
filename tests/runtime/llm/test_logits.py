"""Sampling among the tokens that the engine picked draws what sampling among all of them draws."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

from foveate.engines import topk_logits
from foveate.engines.engine import Engine
from foveate.engines.ort.backend import OnnxRuntime
from foveate.engines.spec import GraphSpec, TensorSpec
from foveate.runtime.bundle.compiled import choose, load_engines
from foveate.runtime.bundle.loading import load
from foveate.runtime.compiling import self_test
from foveate.runtime.llm.logits import Logits, NotFiniteError
from foveate.runtime.llm.sampling import Sampler, Sampling
from foveate.runtime.pipeline import Pipeline

PROMPT = "What is left of it?"


def test_only_logits_have_candidates() -> None:
    plain = GraphSpec("pruner", (), (TensorSpec("tokens", "float16", (1, 4, 8)),))
    assert topk_logits.offer(plain) is plain
    for size, count in ((9, 9), (32000, 64)):
        spec = GraphSpec("llm", (), (TensorSpec("logits", "float16", (1, 1, size)),))
        offered = topk_logits.offer(spec)
        assert offered.output("top_values").describe() == f"top_values float16[1, 1, {count}]"
        assert offered.output("top_ids").describe() == f"top_ids int32[1, 1, {count}]"


class Watched(Logits):
    """Counts how often all of them are copied."""

    copies = 0

    def numpy(self) -> np.ndarray:
        Watched.copies += 1
        return super().numpy()


def picked(random: np.random.Generator, logits: np.ndarray) -> Logits:
    """Pick like an engine that takes and orders equal ones as it likes."""
    order = np.lexsort((random.permutation(len(logits)), -logits))[: topk_logits.MOST]
    return Watched(logits[None, None], (logits[order][None, None], order.astype(np.int32)[None, None]))


@pytest.mark.parametrize("kind", ["distinct", "float16", "few values", "all equal"])
def test_the_same_draws(kind: str) -> None:
    random, Watched.copies = np.random.default_rng(5), 0
    asked = {
        "temperature": [0.0, 0.2, 1.0, 3.0],
        "top_k": [None, 1, 2, 40, 63, 64, 200],
        "top_p": [None, 0.3, 0.9],
    }
    served = 0
    for number in range(600):
        size = int(random.integers(1, 900))
        logits = random.standard_normal(size).astype("float16" if kind == "float16" else "float32") * 4
        if kind in ("few values", "all equal"):
            logits = np.round(logits / (2 if kind == "few values" else 1e6)) + np.float32(1)
        setting = {name: values[random.integers(len(values))] for name, values in asked.items()}
        drawn = [
            Sampler(Sampling(**setting, seed=number))(each)
            for each in (Logits(logits), picked(random, logits))
        ]
        assert drawn[0] == drawn[1], setting
        count = 1 if setting["temperature"] == 0 else setting["top_k"]
        served += count is not None and count < min(topk_logits.MOST, size)
    if kind in ("distinct", "all equal"):  # and there all of them are copied where they must, and never else
        assert 600 - Watched.copies == (served if kind == "distinct" else 0)
    assert served > 200


@pytest.fixture(scope="module")
def picking(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., dict[str, Engine]]:
    """Return the bundle's engines, with a language model that picks candidates in ONNX Runtime.

    With ``largest`` 0 it picks the wrong ones.
    """

    def make(largest: int = 1) -> dict[str, Engine]:
        opened, folder = load(bundle), tmp_path_factory.mktemp("picking")
        model = onnx.load(bundle / "llm.ort.onnx")
        count = onnx.numpy_helper.from_array(np.array([topk_logits.MOST]), "candidates")
        model.graph.initializer.append(count)
        names = topk_logits.VALUES, "top_wide"
        model.graph.node.append(helper.make_node("TopK", ["logits", "candidates"], names, largest=largest))
        model.graph.node.append(
            helper.make_node("Cast", ["top_wide"], [topk_logits.IDS], to=onnx.TensorProto.INT32)
        )
        spec = topk_logits.offer(opened.manifest.spec("llm", "ort"))
        for tensor in spec.outputs[-2:]:
            kind = helper.np_dtype_to_tensor_dtype(np.dtype(tensor.dtype))
            model.graph.output.append(helper.make_tensor_value_info(tensor.name, kind, tensor.shape))
        onnx.save(model, folder / "llm.onnx")
        OnnxRuntime().compile_graph(folder / "llm.onnx", folder / "made", spec, {})
        engines = load_engines(opened, choose(opened), {"threads": 1})
        return engines | {"llm": OnnxRuntime().load(folder / "made", spec, {"threads": 1})}

    return make


def test_the_same_answers(bundle: Path, pixels: np.ndarray, picking, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = Pipeline.load(bundle, threads=1)
    pipe = Pipeline(plain.bundle, picking())
    monkeypatch.setattr("foveate.runtime.llm.decoder.Logits", Watched)
    for setting in ({}, {"temperature": 1.3, "top_k": 50}, {"temperature": 0.7, "top_k": 9, "top_p": 0.8}):
        Watched.copies = 0
        asked = {"max_new_tokens": 12, "seed": 3, **setting}
        answer = pipe.generate(pixels, PROMPT, **asked)
        assert Watched.copies == 0
        assert answer.tokens == plain.generate(pixels, PROMPT, **asked).tokens
        assert Watched.copies > 0
    assert len(set(answer.tokens)) > 1


def test_the_self_test_asks_for_the_candidates(
    bundle: Path, picking, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = load(bundle)
    for largest in (1, 0):
        engines = picking(largest)
        monkeypatch.setattr(self_test, "load_engine", lambda b, m, name, s, engines=engines: engines[name])
        found = {finding.answer: finding.ok for finding in self_test.replay(opened, choose(opened))}
        for answer in ("top_values", "top_values, in pieces"):
            assert found.pop(answer) is bool(largest)
        assert all(found.values())


@pytest.mark.parametrize("picks", [np.nan, np.inf, np.finfo(np.float16).min])
def test_candidates_of_nan_are_an_error(picks: float) -> None:
    """NaN in all logits is noticed whatever an engine picks, and no picked id is answered."""
    top = np.full((1, 1, 64), picks, np.float16), np.zeros((1, 1, 64), np.int32)
    for sampling in (Sampling(), Sampling(1.0, top_k=5)):
        with pytest.raises(NotFiniteError):
            Sampler(sampling)(Logits(np.full((1, 1, 900), np.nan, np.float16), top))

"""NaN and infinity: every stage that computes one is named, and no answer is made of it."""

from __future__ import annotations

import contextlib
import io
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from foveate.engines.errors import UserError
from foveate.runtime import cli, pipeline
from foveate.runtime.cli.watch import watch
from foveate.runtime.finite import first_wrong
from foveate.runtime.pipeline import Pipeline

QUESTION = "What is left of the bus?"
BAD = {"NaN": np.nan, "infinity": np.inf}


class Numbers:
    """A Buffer in NumPy; ``on_host`` False stands for one on a device."""

    def __init__(self, array: np.ndarray, on_host: bool = True) -> None:
        self.array, self.on_host = array, on_host
        self.shape, self.dtype, self.nbytes = array.shape, str(array.dtype), array.nbytes

    def numpy(self) -> np.ndarray:
        return self.array


class Faulty:
    """An engine whose ``output`` is ``bad`` from its run number ``first`` on.

    It is bad in ``every`` number of the output, or in one.
    """

    def __init__(
        self, engine: Any, output: str, bad: float, first: int = 0, every=True, on_host=True
    ) -> None:
        self.engine, self.spec, self.output, self.bad = engine, engine.spec, output, bad
        self.first, self.every, self.on_host, self.runs, self.working = first, every, on_host, 0, False

    def __getattr__(self, name: str) -> Any:
        return getattr(self.engine, name)

    def run(self, feeds: Any) -> dict[str, Any]:
        outputs = dict(self.engine.run(feeds))
        if self.runs >= self.first and not self.working:
            values = outputs[self.output].numpy().copy()
            values.reshape(-1)[slice(None) if self.every else -1] = self.bad
            outputs[self.output] = Numbers(values, self.on_host)
        self.runs += 1
        return outputs


def faulty(bundle: Path, graph: str, *arguments: Any, **options: Any) -> Pipeline:
    pipe = Pipeline.load(bundle, threads=1)
    engine = Faulty(pipe._engines[graph], *arguments, **options)
    return Pipeline(pipe.bundle, {**pipe._engines, graph: engine})


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("asked", [{}, {"temperature": 0.8}, {"repetition_penalty": 1.2}, {"sample": True}])
@pytest.mark.parametrize("first", [0, 3])
def test_logits(bundle: Path, pixels: np.ndarray, bad: str, asked: dict, first: int) -> None:
    pipe = faulty(bundle, "llm", "logits", BAD[bad], first)
    where = "3 tokens of the answer" if first else "the prompt"
    with pytest.raises(UserError, match=f"llm computed NaN or infinity.*logits after {where} in float32"):
        pipe.generate(pixels, QUESTION, max_new_tokens=9, seed=1, **asked)


def test_logits_of_minus_infinity_are_tokens_that_are_never_said(bundle: Path, pixels: np.ndarray) -> None:
    pipe = faulty(bundle, "llm", "logits", -np.inf, every=False)
    expected = Pipeline.load(bundle, threads=1).generate(pixels, QUESTION, max_new_tokens=9)
    for asked in ({}, {"temperature": 1.0, "seed": 1}):
        answer = pipe.generate(pixels, QUESTION, max_new_tokens=9, **asked)
        assert 259 not in answer.tokens
        assert asked or answer.tokens == expected.tokens


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize(("graph", "output"), [("vision_encoder", "projected"), ("pruner", "tokens")])
@pytest.mark.parametrize("on_host", [True, False])
def test_features(bundle: Path, pixels: np.ndarray, bad: str, graph: str, output: str, on_host: bool) -> None:
    """Features on a device are read when the logits show a fault; a pruner that sees them is on a device."""
    pipe = faulty(bundle, graph, output, BAD[bad], on_host=on_host)
    if graph == "vision_encoder" and not on_host:
        pruner, run = pipe._engines["pruner"], pipe._engines["pruner"].run
        pruner.run = lambda feeds: {
            name: Numbers(value.numpy(), value.dtype == "int64")
            for name, value in run(host_fed(feeds)).items()
        }
    with pytest.raises(UserError, match=f"{graph} computed NaN or infinity.*got {output} in float32"):
        pipe.generate(pixels, QUESTION, max_new_tokens=4)


def host_fed(feeds: dict) -> dict:
    return {name: feed.numpy() if isinstance(feed, Numbers) else feed for name, feed in feeds.items()}


def test_a_conversation_goes_on_without_what_was_wrong(bundle: Path, pixels: np.ndarray) -> None:
    pipe = faulty(bundle, "llm", "logits", np.nan, first=12)
    chat = pipe.chat()
    first = chat.ask(QUESTION, pixels, max_new_tokens=6)
    with pytest.raises(UserError, match="llm computed NaN"):
        chat.ask("And right?", max_new_tokens=30)
    pipe._engines["llm"].working = True
    again = chat.ask("And right?", max_new_tokens=30)
    assert again.timings.reused_rows == 0, "the cache holds NaN"
    whole = Pipeline.load(bundle, threads=1).chat()
    assert whole.ask(QUESTION, pixels, max_new_tokens=6).tokens == first.tokens
    assert whole.ask("And right?", max_new_tokens=30).tokens == again.tokens


@pytest.mark.parametrize("verb", ["run", "chat", "bench"])
def test_verbs_say_so_in_one_line(
    bundle: Path, pixels: np.ndarray, tmp_path: Path, verb: str, monkeypatch, capsys
) -> None:
    load = pipeline.load_engines

    def broken(*arguments: Any) -> dict[str, Any]:
        engines = load(*arguments)
        return {**engines, "llm": Faulty(engines["llm"], "logits", np.nan)}

    monkeypatch.setattr(pipeline, "load_engines", broken)
    image = tmp_path / "image.png"
    Image.fromarray(pixels).save(image)
    arguments = {
        "run": [str(bundle), QUESTION, "--image", str(image)],
        "chat": [str(bundle), "--image", str(image)],
        "bench": [str(bundle), "--rounds", "1"],
    }
    for drawn in ([], ["--temperature", "0.8"]) if verb != "bench" else ([],):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"What?\n")))
        assert cli.main([verb, *arguments[verb], *drawn]) == 1
        (line,) = [line for line in capsys.readouterr().err.splitlines() if "NaN" in line]
        assert line.startswith(
            "foveate: llm computed NaN or infinity | got logits after the prompt in float32"
        )


def test_watching_ends(bundle: Path, pixels: np.ndarray) -> None:
    class Frames:
        """A file of one frame."""

        name, live = "frames", False

        @contextlib.contextmanager
        def open(self) -> Iterator[Iterator[tuple[float, np.ndarray]]]:
            yield iter([(0.0, pixels)])

    pipe = faulty(bundle, "llm", "logits", np.nan)
    with pytest.raises(UserError, match="llm computed NaN"):
        watch(pipe, Frames(), QUESTION, threading.Event(), {"temperature": 0.8}, count=1)


def test_the_advice_depends_on_the_bundle(bundle: Path, pixels: np.ndarray) -> None:
    data = json.loads((bundle / "bundle.json").read_text())
    from foveate.runtime.bundle.loading import Bundle
    from foveate.runtime.bundle.manifest import Manifest
    from foveate.runtime.finite import refuse

    def said(dtype: str, precision: str, *dialects: str) -> str:
        known = {name: {"dtype": name, "files": {}} for name in dialects}
        kinds = {"decoder": precision, "head": precision, "vision": precision}
        manifest = Manifest.from_json({**data, "dialects": known, "precision": kinds})
        return str(refuse(Bundle(bundle, manifest), "llm", dtype, "logits"))

    assert f"foveate compile {bundle} --target onnxruntime --dialect float32" in said(
        "float16", "int4", "float32"
    )
    assert "--precision fp32" in said("float16", "fp16", "float16")
    assert "--precision fp32" in said("float32", "int4", "float32")
    assert "the checkpoint itself" in said("float32", "fp32", "float32")


def test_large_numbers_are_numbers() -> None:
    huge = np.full((1, 8, 2), 3e38, np.float32)
    assert first_wrong({"tokens": Numbers(huge)}) is None, "their sum is infinite, they are not"
    padded = np.ones((1, 4, 2), np.float16)
    padded[0, 3] = np.nan
    assert first_wrong({"tokens": Numbers(padded)}, rows=3) is None
    assert first_wrong({"count": Numbers(np.ones(1, np.int64)), "tokens": Numbers(padded)}) == "tokens"

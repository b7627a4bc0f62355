"""Inputs of the pruner, the language model's chunks, and a cache whose length the engine settled."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from foveate.engines.engine import resolve
from foveate.engines.errors import UserError
from foveate.engines.spec import GraphSpec, Symbol, TensorSpec
from foveate.runtime.bundle.loading import Bundle, load
from foveate.runtime.clock import Clock
from foveate.runtime.images.processor import image_processor
from foveate.runtime.images.token_layout import single
from foveate.runtime.llm.kv_cache import KVCache
from foveate.runtime.llm.visual_tokens import VisualTokens
from foveate.runtime.pipeline import Pipeline
from foveate.runtime.vision.features import ImageFeatures
from foveate.runtime.vision.stages import VisionStages

JOINT, CONTEXT = 6, 10


class HostBuffer:
    """A Buffer in NumPy."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array
        self.shape, self.dtype, self.nbytes = array.shape, str(array.dtype), array.nbytes
        self.on_host = True

    def numpy(self) -> np.ndarray:
        return self.array


class Recorder:
    """An Engine that keeps what it was fed; ``answer`` makes its outputs."""

    def __init__(self, spec: GraphSpec, answer: Any = None) -> None:
        self.spec, self.answer, self.fed = spec, answer, []

    def allocate(self, name: str, sizes: Any, content: np.ndarray | None = None) -> HostBuffer:
        array = np.zeros(resolve(self.spec, name, sizes), np.float32)
        if content is not None:
            array[tuple(map(slice, content.shape))] = content
        return HostBuffer(array)

    def run(self, feeds: Any) -> dict[str, HostBuffer]:
        self.fed.append(feeds)
        return {name: HostBuffer(value) for name, value in self.answer(feeds).items()}


def stages(bundle: Path, count: int = 2) -> tuple[VisionStages, Recorder, Recorder]:
    """Vision stages with a CLIP text encoder (10 tokens, at most 3 segments) and a pruner that keeps ``count`` rows."""
    opened = load(bundle)
    segments, words, keep = Symbol("segments", 1, 1, 3), Symbol("words", 1, 4, 5), Symbol("keep", 1, 3, 16)
    text = Recorder(
        GraphSpec("text_encoder", (TensorSpec("input_ids", "int64", (segments, CONTEXT)),), ()),
        lambda feeds: {"clip_text": np.ones((1, len(feeds["input_ids"]), JOINT), np.float32)},
    )
    pruner = Recorder(
        GraphSpec(
            "pruner",
            (
                TensorSpec("keep", "int64", (), keep),
                TensorSpec("projected", "float32", (1, 16, 32)),
                TensorSpec("text_embeds", "float32", (1, words, 32)),
                TensorSpec("clip_text", "float32", (1, segments, JOINT)),
            ),
            (),
        ),
        lambda feeds: {
            "tokens": np.arange(4 * 32, dtype=np.float32).reshape(1, 4, 32),
            "kept": np.array([[1, 3, -1, -1]]),
            "count": np.array([count]),
        },
    )
    pipe = Pipeline.load(bundle)
    # the byte tokenizer stands in for CLIP's: it needs a template that gives BOS and EOS
    clip = bundle / "clip_tokenizer.json"
    clip.write_text(_with_template((bundle / "tokenizer.json").read_text()))
    engines = {"vision_encoder": None, "text_encoder": text, "pruner": pruner}
    made = VisionStages(
        Bundle(opened.path, opened.manifest), engines, pipe.tokenizer, np.load(bundle / "embed_tokens.npy")
    )
    return made, text, pruner


def _with_template(tokenizer: str) -> str:
    from tokenizers import Tokenizer, processors

    made = Tokenizer.from_str(tokenizer)
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 257), ("</s>", 258)]
    )
    return made.to_str()


@pytest.fixture
def own(bundle: Path, tmp_path: Path) -> Path:
    import shutil

    return shutil.copytree(bundle, tmp_path / "own")


def seen() -> ImageFeatures:
    plan = single((4, 4))
    view = image_processor({"kind": "clip", "size": [8, 8]}).view((8, 8), plan)
    return ImageFeatures({"projected": HostBuffer(np.zeros((1, 16, 32), np.float32))}, plan, view)


def test_the_users_words_as_embeddings(own: Path) -> None:
    vision, _, pruner = stages(own)
    table = np.load(own / "embed_tokens.npy")
    vision.prune(seen(), vision.question("abc", Clock()), 3, Clock())
    ids = Pipeline.load(own).tokenizer.encode_text("abc")
    assert len(ids) == 3
    np.testing.assert_array_equal(pruner.fed[0]["text_embeds"], table[ids][None])
    vision.prune(seen(), vision.question("abcdefgh", Clock()), 3, Clock())
    assert pruner.fed[1]["text_embeds"].shape == (1, 5, 32)  # as many as the graph takes


def test_no_words_are_one_zero_row(own: Path) -> None:
    vision, text, pruner = stages(own)
    vision.prune(seen(), vision.question("", Clock()), 3, Clock())
    for name, width in (("text_embeds", 32), ("clip_text", JOINT)):
        np.testing.assert_array_equal(pruner.fed[0][name], np.zeros((1, 1, width), np.float32))
    assert text.fed == []


def test_long_texts_are_segments_for_clip(own: Path) -> None:
    vision, text, pruner = stages(own)
    for length, rows in (
        (8, 1),
        (9, 2),
        (100, 3),
    ):  # 8 tokens a segment between BOS and EOS, at most 3 segments
        vision.prune(seen(), vision.question("x" * length, Clock()), 3, Clock())
        ids = text.fed[-1]["input_ids"]
        assert ids.shape == (rows, CONTEXT)
        assert set(ids[:, 0]) == {257}
        assert pruner.fed[-1]["clip_text"].shape == (1, rows, JOINT)


def test_only_the_valid_rows_are_spliced(own: Path) -> None:
    vision, _, pruner = stages(own, count=3)
    image = vision.prune(seen(), vision.question("a", Clock()), 4, Clock())
    assert image.tokens.shape == (3, 32)
    assert image.kept.tolist() == [1, 3, -1]
    assert pruner.fed[0]["keep"].shape == ()
    assert int(pruner.fed[0]["keep"]) == 4


def test_positions_of_merged_rows(make_bundle) -> None:
    from foveate.runtime.compiling.compile import compile_bundle

    root = make_bundle(mode="keep")
    compile_bundle(root)
    decoder = Pipeline.load(root).decoder()
    image = VisualTokens(None, np.array([-1, 2, -1, 9]), single((1, 16)))
    assert decoder._positions([5, image, 6]).tolist() == [0, 1, 3, 3, 10, 17]
    assert decoder.extent([image]) == (4, 16)


def test_prefill_in_chunks_is_prefill_at_once(bundle: Path) -> None:
    """A prompt is run in pieces where an engine's profile is shorter."""
    items = np.random.default_rng(0).integers(0, 256, 50).tolist()
    decoders = [Pipeline.load(bundle).decoder() for _ in range(2)]
    decoders[1]._most = 7
    whole, chunked = (decoder.prefill(items, 4).logits.numpy() for decoder in decoders)
    np.testing.assert_allclose(chunked, whole, atol=1e-5)
    np.testing.assert_allclose(*(decoder.step(9).numpy() for decoder in decoders), atol=1e-5)
    assert decoders[1].length == 51


@pytest.mark.parametrize("error", [MemoryError, KeyboardInterrupt])
def test_a_cache_that_cannot_grow_is_empty(
    bundle: Path, error: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder = Pipeline.load(bundle).decoder()
    whole = decoder.prefill([1, 2, 3], 2).logits.numpy()
    allocate, calls = decoder.segments[0].engine.allocate, []

    def fail(*args: Any) -> Any:
        calls.append(args)
        if len(calls) == 3:
            raise error
        return allocate(*args)

    monkeypatch.setattr(decoder.segments[0].engine, "allocate", fail)
    with pytest.raises(UserError if error is MemoryError else error):
        decoder.prefill([1, 2, 3, 4, 5, 6], 9)
    cache = decoder.segments[0].cache
    assert (cache.capacity, cache.length, decoder.allocated) == (0, 0, 0)
    assert decoder.reuse([1, 2, 3]) == 0
    np.testing.assert_allclose(decoder.prefill([1, 2, 3], 2).logits.numpy(), whole, atol=1e-6)


def test_a_cache_as_long_as_the_engine_says() -> None:
    def engine(rows: int | Symbol) -> Recorder:
        past = TensorSpec("past.0.key", "float32", (1, 2, rows, 4))
        return Recorder(
            GraphSpec(
                "llm", (past,), (replace(past, name="present.0.key"),), (("present.0.key", "past.0.key"),)
            )
        )

    settled = KVCache(engine(64))
    settled.reserve(10)
    assert (settled.capacity, settled.limit, settled.allocated) == (64, 64, 64 * 2 * 4 * 4)
    settled.length = 16
    assert settled.used == settled.allocated // 4
    free = KVCache(engine(Symbol("cache", 1, 8, 100)))
    free.reserve(10)
    assert (free.capacity, free.limit) == (10, 100)
    free.feeds()["past.0.key"].array[:] = 7
    free.length = 10
    free.reserve(5)
    assert free.capacity == 10
    free.reserve(12)
    assert free.feeds()["past.0.key"].array[0, 0, :, 0].tolist() == [7] * 10 + [0, 0]
    free.cut(3)
    free.cut(8)
    assert free.length == 3

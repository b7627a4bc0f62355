"""Inputs of the pre-LLM pruner, and the rows that it leaves."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from recorder import HostBuffer, Recorder

from foveate.engines.spec import GraphSpec, Symbol, TensorSpec
from foveate.runtime.bundle.loading import Bundle, load
from foveate.runtime.clock import Clock
from foveate.runtime.images.processor import image_processor
from foveate.runtime.images.token_layout import single
from foveate.runtime.pipeline import Pipeline
from foveate.runtime.vision.features import ImageFeatures
from foveate.runtime.vision.stages import VisionStages

JOINT, CONTEXT = 6, 10


def stages(bundle: Path, count: int = 2) -> tuple[VisionStages, Recorder, Recorder]:
    """Return vision stages with a CLIP text encoder and a pruner that keeps ``count`` rows.

    The text encoder takes 10 tokens in at most 3 segments.
    """
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

"""A request opens and lays out each image once, and resolves ``keep`` once."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from foveate.engines.errors import UserError
from foveate.runtime.images.clip import ClipProcessor
from foveate.runtime.pipeline import Pipeline
from foveate.runtime.vision import stages


class Counted:
    """A function that counts its calls."""

    def __init__(self, work) -> None:
        self.work, self.calls = work, 0

    def __call__(self, *arguments, **named):
        self.calls += 1
        return self.work(*arguments, **named)


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    random = np.random.default_rng(3)
    paths = [tmp_path / "one.png", tmp_path / "two.png"]
    for path in paths:
        Image.fromarray(random.integers(0, 256, (8, 8, 3), np.uint8)).save(path)
    return paths


@pytest.fixture
def counts(monkeypatch: pytest.MonkeyPatch) -> dict[str, Counted]:
    """``varies`` makes every image be opened for its size, as images of any size are."""
    monkeypatch.setattr(stages.VisionStages, "varies", True)
    found = {"open": Counted(Image.open), "keep": Counted(stages.resolve_keep)}
    found["layout"] = Counted(ClipProcessor.token_layout)
    found["pixels"] = Counted(ClipProcessor.preprocess)
    monkeypatch.setattr(Image, "open", found["open"])
    monkeypatch.setattr(stages, "resolve_keep", found["keep"])
    for name, counted in (("token_layout", found["layout"]), ("preprocess", found["pixels"])):
        monkeypatch.setattr(ClipProcessor, name, lambda *args, counted=counted: counted(*args))
    return found


def told(counts: dict[str, Counted]) -> dict[str, int]:
    return {name: counted.calls for name, counted in counts.items()}


def test_each_image_is_opened_and_laid_out_once(bundle, files, counts) -> None:
    pipe = Pipeline.load(bundle)
    assert len(pipe.generate(files, "Which?", keep=5, max_new_tokens=2).kept) == 2
    assert told(counts) == {"open": 2, "keep": 2, "layout": 2, "pixels": 2}


def test_a_conversation_keeps_what_it_knows_of_its_images(bundle, files, counts) -> None:
    chat = Pipeline.load(bundle).chat()
    chat.ask("Which?", files[0], keep=5, max_new_tokens=2)
    assert told(counts) == {"open": 1, "keep": 1, "layout": 1, "pixels": 1}
    chat.ask("And this?", files[1], keep=5, max_new_tokens=2)
    assert told(counts) == {"open": 2, "keep": 2, "layout": 2, "pixels": 2}
    chat.ask(
        "Again?", keep=4, reprune=True, max_new_tokens=2
    )  # a budget for each image, and one that is checked
    assert told(counts) == {"open": 2, "keep": 5, "layout": 2, "pixels": 2}


def test_an_image_that_was_seen_is_neither_opened_nor_laid_out_again(bundle, files, counts) -> None:
    pipe = Pipeline.load(bundle)
    seen = pipe.see(files[0])
    for keep in (3, 6):
        assert len(pipe.generate(seen, "Which?", keep=keep, max_new_tokens=2).kept[0]) == keep
    assert told(counts) == {"open": 1, "keep": 2, "layout": 1, "pixels": 1}


def test_a_prompt_does_not_change_its_images(bundle, pixels) -> None:
    chat = Pipeline.load(bundle).chat()
    chat.ask("Which?", pixels, keep=5, max_new_tokens=2)
    shown = chat._shown[0]
    for part in (shown, shown.visual, shown.features, shown.features.layout):
        with pytest.raises(dataclasses.FrozenInstanceError):
            part.keep = 3


def test_an_image_that_fits_no_layout_is_refused_before_anything_runs(bundle, counts) -> None:
    with pytest.raises(UserError, match="not an image"):
        Pipeline.load(bundle).stream(b"some text, no image" * 9, "Which?")

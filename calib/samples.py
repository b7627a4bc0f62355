"""Calibration samples: images with prompts, and their hash.

They come from a folder, a JSONL file or the built-in scenes:

* A folder holds images. The prompt of ``bus.jpg`` is in ``bus.txt``; without that file it is one of
  ``PROMPTS`` in turn.
* A line of a JSONL file is ``{"image": "bus.jpg", "prompt": "What is left of the bus?"}``. Paths are relative
  to the file.
* ``scenes`` are synthetic images (``calib.scenes``), from seeds that neither training nor accuracy runs use.
  They need no files, but images like those that the model will see are better.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from foveate.calib.scenes.questions import HELD_OUT, make_scene, questions
from foveate.engines.errors import UserError
from foveate.runtime.images.image_file import load_image
from foveate.runtime.images.image_source import ImageSource

__all__ = ["COUNT", "PROMPTS", "SCENES", "Sample", "Samples", "load"]

COUNT = 32
SCENES = "scenes"
PROMPTS = (
    "Describe the image.",
    "What is in the image, and where?",
    "What is the main thing in the image doing?",
    "Which colors do you see?",
    "Is there any text in the image? What does it say?",
)
T = TypeVar("T")
_FIRST_SCENE = HELD_OUT + 500_000_000
_IMAGES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"}


@dataclass(frozen=True)
class Sample:
    """An image, and the text that is asked with it."""

    image: ImageSource
    prompt: str


@dataclass(frozen=True)
class Samples:
    """Samples with their ``digest``: SHA-256 over images and prompts in their order."""

    items: tuple[Sample, ...]
    digest: str

    def __len__(self) -> int:
        return len(self.items)


def load(source: str, count: int = COUNT) -> Samples:
    """Return at most ``count`` samples of ``source``, at even distances.

    ``source`` is a folder, a ``.jsonl`` file or "scenes". Every image is opened once. Raises UserError for
    sources, images and prompts that are missing, damaged or empty.
    """
    if count < 1:
        raise UserError(f"wrong calibration-count | got {count}, expected 1 or more", code=2)
    if source == SCENES:
        return _hashed(_scene(_FIRST_SCENE + index) for index in range(count))
    path = Path(source).expanduser()
    if source and path.is_dir():
        found = _folder(path)
        samples = (_of_folder(image, number) for number, image in _spread(list(enumerate(found)), count))
    elif path.is_file():
        samples = (_of_line(path, number, line) for number, line in _spread(_lines(path), count))
    else:
        raise UserError(
            f"no calibration samples at {source!r} | got no such path, "
            f"expected a folder of images, a .jsonl file or {SCENES} | --calibrate {SCENES} needs no files"
        )
    return _hashed(samples)


def _hashed(samples: Iterable[Sample]) -> Samples:
    digest, items = hashlib.sha256(), []
    for sample in samples:
        image = load_image(sample.image)
        for part in (sample.prompt.encode(), repr(image.size).encode(), image.tobytes()):
            digest.update(len(part).to_bytes(8, "little") + part)
        items.append(sample)
    return Samples(tuple(items), digest.hexdigest())


def _spread(items: Sequence[T], count: int) -> list[T]:
    count = min(count, len(items))
    return [items[index * len(items) // count] for index in range(count)]


def _scene(seed: int) -> Sample:
    scene = make_scene(seed)
    return Sample(scene.image, questions(scene, np.random.default_rng(seed), 1)[0].text)


def _folder(path: Path) -> list[Path]:
    found = sorted(each for each in path.iterdir() if each.suffix.lower() in _IMAGES and each.is_file())
    if not found:
        raise UserError(
            f"no images in {path} | expected files that end in {', '.join(sorted(_IMAGES))} "
            "| give the folder that they are in, not one above it"
        )
    return found


def _of_folder(image: Path, number: int) -> Sample:
    beside = image.with_suffix(".txt")
    if not beside.is_file():
        return Sample(image, PROMPTS[number % len(PROMPTS)])
    prompt = _text(beside).strip()
    if not prompt:
        raise UserError(
            f"the prompt in {beside} is empty | expected a question | write one, or delete the file"
        )
    return Sample(image, prompt)


def _lines(path: Path) -> list[tuple[int, str]]:
    if path.suffix.lower() in _IMAGES:
        raise UserError(
            f"{path} is one image | expected a folder of images, or a .jsonl file | give the folder it is in"
        )
    lines = [(n, line) for n, line in enumerate(_text(path).splitlines(), 1) if line.strip()]
    if not lines:
        raise UserError(f'{path} is empty | expected a line {{"image": ..., "prompt": ...}} per sample')
    return lines


def _of_line(path: Path, number: int, line: str) -> Sample:
    try:
        values = json.loads(line)
    except ValueError as error:
        raise _bad_line(path, number, f"it is not JSON ({error})") from error
    if not isinstance(values, dict):
        raise _bad_line(path, number, f"it is a JSON {type(values).__name__}")
    for key in ("image", "prompt"):
        if not (isinstance(values.get(key), str) and values[key].strip()):
            raise _bad_line(path, number, f"its {key} is {json.dumps(values.get(key))}")
    image = path.parent / Path(values["image"]).expanduser()
    if not image.is_file():
        raise _bad_line(path, number, f"there is no file {image}")
    return Sample(image, values["prompt"])


def _bad_line(path: Path, number: int, got: str) -> UserError:
    return UserError(
        f"wrong line {number} of {path} "
        f'| {got}, expected {{"image": PATH, "prompt": TEXT}} | correct the line'
    )


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not text in UTF-8 | {error.reason} at byte {error.start}") from error

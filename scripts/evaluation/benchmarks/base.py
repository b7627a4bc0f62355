"""Parts shared by the benchmarks: samples, and readers for their files and images."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from foveate.engines.errors import UserError

__all__ = ["LETTER", "SHORT", "VICUNA", "Sample", "find", "image_of", "locate", "mean", "padded", "read"]

SHORT = "\nAnswer the question using a single word or phrase."
LETTER = "\nAnswer with the option's letter from the given choices directly."
VICUNA = (
    "A chat between a curious human and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the human's questions."
)


@dataclass(frozen=True)
class Sample:
    """One question.

    ``image`` is a file, the bytes of one, or None for text alone; ``meta`` is what ``score`` needs.

    The command adds ``meta["seen"]``, the part that the model saw: left, top, right, bottom in pixels of the
    image.
    """

    id: str
    image: Path | bytes | None
    prompt: str
    meta: dict[str, Any] = field(default_factory=dict)


def find(path: Path, *patterns: str) -> list[Path]:
    """Return ``path`` if it is a file, else the sorted files below it of the first pattern that matches.

    Raises UserError if there are none.
    """
    if path.is_file():
        return [path]
    for pattern in patterns:
        if files := sorted(path.rglob(pattern)):
            return files
    got = f"there is none in {path}" if path.is_dir() else f"there is no {path}"
    raise UserError(f"no questions found | {got}, expected {' or '.join(patterns)} | give --data", code=2)


def read(file: Path) -> Iterator[dict[str, Any]]:
    """Yield the records of a JSON list, JSON lines (any suffix), a table (.tsv, .csv) or a .parquet file."""
    if file.suffix == ".parquet":
        yield from _parquet(file)
    elif file.suffix in (".tsv", ".csv"):
        csv.field_size_limit(sys.maxsize)  # cells contain images
        with file.open(encoding="utf-8", newline="") as lines:
            yield from csv.DictReader(lines, delimiter="\t" if file.suffix == ".tsv" else ",")
    else:
        text = file.read_text(encoding="utf-8")
        first = text.lstrip()[:1]
        yield from json.loads(text) if first == "[" else map(json.loads, filter(str.strip, text.splitlines()))


def _parquet(file: Path) -> Iterator[dict[str, Any]]:
    try:
        from pyarrow.parquet import ParquetFile
    except ModuleNotFoundError as error:
        raise UserError(
            f"reading {file.name} needs pyarrow | it is not installed | pip install pyarrow"
        ) from error
    for batch in ParquetFile(file).iter_batches(batch_size=32):  # rows contain images of millions of bytes
        yield from batch.to_pylist()


def image_of(value: Any, *folders: Path) -> Path | bytes:
    """Return the path or the bytes of an image.

    ``value`` is Hugging Face's {"bytes", "path"}, the bytes themselves, or a file name in one of ``folders``.
    """
    if isinstance(value, Mapping):
        value = value["bytes"] or value["path"]
    return value if isinstance(value, bytes) else locate(value, *folders)


def locate(name: str, *folders: Path) -> Path:
    """Find the file ``name`` in one of ``folders``. Raises UserError.

    ``name`` may be a path of which only the last part is right.
    """
    for folder in folders:
        for candidate in (folder / name, folder / Path(name).name):
            if candidate.is_file():
                return candidate
    places = ", ".join(str(folder) for folder in folders)
    raise UserError(f"the image {name} is missing | looked in {places} | put it there", code=2)


def padded(image: Image.Image, mean: Sequence[float]) -> tuple[Image.Image, int, int]:
    """Return the image centred in a square of the colour ``mean`` (0..1), and its left and top there."""
    side = max(image.size)
    left, top = (side - image.width) // 2, (side - image.height) // 2
    square = Image.new("RGB", (side, side), tuple(int(255 * value) for value in mean))
    square.paste(image, (left, top))
    return square, left, top


def mean(values: Any) -> float:
    values = list(values)
    return sum(values) / len(values) if values else 0.0

"""RefCOCO, RefCOCO+, RefCOCOg: find the box of what some words refer to in the image.

Data: JSON lines (image or img_path, sent or expression, bbox [left, top, right, bottom] in pixels) with
COCO's train2014 beside or below, or parquet as on the hub (image, bbox [left, top, width, height], answer:
one expression or several). Score each split separately.

Scoring: the share of answers whose box has an IoU of at least 0.5 with the true one. LLaVA-1.5 writes [x1,
y1, x2, y2] as shares of the square image that it sees. It was trained on images padded to squares, so its
boxes are shares of the *padded* square. Other evaluations (such as lmms-eval) take them for shares of the
image, and so count correct boxes in oblong images as wrong. Here a box is mapped back to the image through
what the model saw (``meta["seen"]``), padded or cropped. No box can reach what a crop cut off.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from evaluation.benchmarks.base import Sample, find, image_of, mean, read

NEW_TOKENS = 128

_BOX = re.compile(r"\[\s*" + r"\s*,\s*".join([r"(-?\d*\.?\d+)"] * 4) + r"\s*\]")
Box = tuple[float, float, float, float]


def load(path: Path) -> Iterator[Sample]:
    for file in find(path, "*.jsonl", "*.parquet", "*.json"):
        folders = [place / name for place in (path, file.parent) for name in ("", "train2014", "images")]
        for number, row in enumerate(read(file)):
            image = image_of(row.get("image") or row["img_path"], *folders)
            for index, words in enumerate(_expressions(row)):
                yield Sample(f"{file.stem}/{number}/{index}", image, _prompt(words), {"box": _box(row, file)})


def _expressions(row: dict[str, Any]) -> list[str]:
    words = row.get("sent") or row.get("expression") or row["answer"]
    return [words] if isinstance(words, str) else list(words)


def _prompt(words: str) -> str:
    phrase = words.strip().rstrip(".")
    return f"Please provide the bounding box coordinate of the region this sentence describes: {phrase}."


def _box(row: dict[str, Any], file: Path) -> Box:
    left, top, third, fourth = row["bbox"]
    return (
        (left, top, left + third, top + fourth) if file.suffix == ".parquet" else (left, top, third, fourth)
    )


def said(text: str, seen: Box) -> Box | None:
    """Return the first box of an answer in pixels of the image, of which the model saw ``seen``, or None."""
    if (found := _BOX.search(text)) is None:
        return None
    left, top, right, bottom = seen
    x1, y1, x2, y2 = map(float, found.groups())
    return (
        left + x1 * (right - left),
        top + y1 * (bottom - top),
        left + x2 * (right - left),
        top + y2 * (bottom - top),
    )


def overlap(a: Box, b: Box) -> float:
    """Return the intersection over union."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    shared = max(0.0, width) * max(0.0, height)
    whole = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)) - shared
    return shared / whole if whole > 0 else 0.0


def score(samples: Sequence[Sample], answers: Sequence[str]) -> dict[str, Any]:
    boxes = [said(text, sample.meta["seen"]) for sample, text in zip(samples, answers, strict=True)]
    overlaps = [overlap(box, s.meta["box"]) if box else 0.0 for box, s in zip(boxes, samples, strict=True)]
    return {
        "accuracy": mean(value >= 0.5 for value in overlaps),
        "mean_iou": mean(overlaps),
        "without_box": sum(box is None for box in boxes),
    }

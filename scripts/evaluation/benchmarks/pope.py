"""POPE: yes-or-no questions about objects in an image, some absent (Li et al., arXiv 2305.10355).

Absent objects are often likely ones.

Data: ``coco_pope_{random,popular,adversarial}.json`` (JSON lines: question_id, image, text, label) and COCO's
val2014 beside or below; or parquet (question_id, question, answer, category, image). Scoring: LLaVA's
``eval_pope.py``. The published figure is the F1 or the accuracy averaged over the three categories.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from evaluation.benchmarks.base import SHORT, Sample, find, image_of, mean, read

NEW_TOKENS = 128


def load(path: Path) -> Iterator[Sample]:
    for file in find(path, "coco_pope_*.json", "*.parquet"):
        folders = [
            place / name for place in (path, file.parent, file.parent.parent) for name in ("val2014", "")
        ]
        for row in read(file):
            category = row.get("category") or file.stem.removeprefix("coco_pope_")
            question, label = row.get("question") or row["text"], row.get("answer") or row["label"]
            image = image_of(row["image"], *folders)
            meta = {"category": category, "label": label.strip().lower()}
            yield Sample(f"{category}/{row['question_id']}", image, question.strip() + SHORT, meta)


def said(text: str) -> str:
    """Return no if the first sentence has one of the words "No", "no", "not", else yes."""
    words = text.split(".")[0].replace(",", "").split(" ")
    return "no" if {"No", "no", "not"} & set(words) else "yes"


def score(samples: Sequence[Sample], answers: Sequence[str]) -> dict[str, Any]:
    pairs: dict[str, list[tuple[str, str]]] = {}
    for sample, text in zip(samples, answers, strict=True):
        pairs.setdefault(sample.meta["category"], []).append((said(text), sample.meta["label"]))
    categories = {category: _measures(of_category) for category, of_category in pairs.items()}
    names = ("accuracy", "precision", "recall", "f1", "yes_ratio")
    overall = {name: mean(measures[name] for measures in categories.values()) for name in names}
    return {**overall, "categories": categories}


def _measures(pairs: Sequence[tuple[str, str]]) -> dict[str, float]:
    hits, false = pairs.count(("yes", "yes")), pairs.count(("yes", "no"))
    misses, right = pairs.count(("no", "yes")), pairs.count(("no", "no"))
    precision, recall = _share(hits, hits + false), _share(hits, hits + misses)
    return {
        "accuracy": _share(hits + right, len(pairs)),
        "precision": precision,
        "recall": recall,
        "f1": _share(2 * precision * recall, precision + recall),
        "yes_ratio": _share(hits + false, len(pairs)),
        "asked": len(pairs),
    }


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0

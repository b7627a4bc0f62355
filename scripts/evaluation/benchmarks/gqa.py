"""GQA: questions about the relations of things, from scene graphs (Hudson and Manning, CVPR 2019).

Data: ``testdev_balanced_questions.json`` (id -> question, answer, imageId, types) or another
``*_questions.json``, with ``images/<imageId>.jpg``; or parquet as on the hub, with questions (id, imageId,
question, answer, types) and images (id, image) in separate files.

Scoring: exact match with the one answer, as in GQA's ``eval.py`` after LLaVA's ``convert_gqa_for_eval.py``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from evaluation.benchmarks.base import SHORT, Sample, find, image_of, locate, mean, read

NEW_TOKENS = 128


def load(path: Path) -> Iterator[Sample]:
    files = find(path, "testdev_balanced_questions.json", "*_questions.json", "*.parquet")
    if files[0].suffix == ".json":
        for name, row in json.loads(files[0].read_text(encoding="utf-8")).items():
            folders = [files[0].parent / "images", files[0].parent.parent / "images", files[0].parent]
            yield _sample(name, row, locate(f"{row['imageId']}.jpg", *folders))
        return
    images, questions = {}, []
    for row in (row for file in files for row in read(file)):
        if "question" in row:
            questions.append(row)
        else:
            images[row["id"]] = image_of(row["image"])
    for row in questions:
        yield _sample(row["id"], row, images[row["imageId"]])


def _sample(name: str, row: dict[str, Any], image: Path | bytes) -> Sample:
    structure = (row.get("types") or {}).get("structural")
    kind = structure and ("open" if structure == "query" else "binary")
    return Sample(str(name), image, row["question"].strip() + SHORT, {"answer": row["answer"], "kind": kind})


def score(samples: Sequence[Sample], answers: Sequence[str]) -> dict[str, Any]:
    right = [text.rstrip(".").lower() == s.meta["answer"] for s, text in zip(samples, answers, strict=True)]
    kinds = {
        kind: mean(hit for hit, sample in zip(right, samples, strict=True) if sample.meta["kind"] == kind)
        for kind in ("binary", "open")
        if any(sample.meta["kind"] == kind for sample in samples)
    }
    return {"accuracy": mean(right), **kinds}

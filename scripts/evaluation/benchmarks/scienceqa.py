"""ScienceQA: multiple choice from school books, half of it with an image (Lu et al., NeurIPS 2022).

Data: ``problems.json`` and ``pid_splits.json`` with ``images/test/<id>/image.png``; or parquet (image,
question, choices, answer, hint). If LLaVA's ``llava_test_CQM-A.json`` is beside the JSON, its prompts are
used (see ``prompts`` of the result). Parquet files of the hub often have only the questions with an image,
which LLaVA-1.5 reports (``image_accuracy``).

Scoring: as LLaVA's ``eval_science_qa.py``. An answer is the letter, "C. ..." or "The answer is C."; anything
else is wrong.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from evaluation.benchmarks.base import LETTER, Sample, find, image_of, locate, mean, read

NEW_TOKENS = 128

_LETTERS = "ABCDE"
_LLAVA = "llava_test_CQM-A.json"


def load(path: Path, split: str = "test") -> Iterator[Sample]:
    files = find(path, "problems.json", "*.parquet")
    if files[0].suffix == ".parquet":
        rows = (row for file in files for row in read(file))
        for number, row in enumerate(rows):
            yield _sample(str(number), row, row["image"] and image_of(row["image"]), _prompt(row), "plain")
        return
    problems, folder = json.loads(files[0].read_text(encoding="utf-8")), files[0].parent
    theirs = folder / _LLAVA
    prompts = {row["id"]: _of_llava(row) for row in read(theirs)} if theirs.is_file() else {}
    for name in json.loads((folder / "pid_splits.json").read_text(encoding="utf-8"))[split]:
        row = problems[name]
        file = f"{name}/{row['image']}"
        image = locate(file, folder / "images" / split, folder / split, folder) if row["image"] else None
        yield _sample(name, row, image, prompts.get(name) or _prompt(row), _LLAVA if prompts else "plain")


def _sample(name: str, row: dict[str, Any], image: Path | bytes | None, prompt: str, prompts: str) -> Sample:
    return Sample(
        name, image, prompt, {"answer": row["answer"], "choices": len(row["choices"]), "prompts": prompts}
    )


def _prompt(row: dict[str, Any]) -> str:
    context = f"Context: {row['hint']}\n" if row.get("hint") else ""
    choices = "\n".join(
        f"{letter}. {choice}" for letter, choice in zip(_LETTERS, row["choices"], strict=False)
    )
    return f"{context}{row['question']}\n{choices}{LETTER}"


def _of_llava(row: dict[str, Any]) -> str:
    return row["conversations"][0]["value"].replace("<image>", "").strip() + LETTER


def letter(text: str) -> str | None:
    """Return the option that an answer names, or None."""
    if text in tuple(_LETTERS):
        return text
    if text[:1] in tuple(_LETTERS) and text[1:3] == ". ":
        return text[0]
    named = re.findall(r"The answer is ([A-Z]).", text)
    return named[0] if len(named) == 1 else None


def score(samples: Sequence[Sample], answers: Sequence[str]) -> dict[str, Any]:
    right = [_right(sample, text) for sample, text in zip(samples, answers, strict=True)]
    shown = [hit for hit, sample in zip(right, samples, strict=True) if sample.image is not None]
    prompts = samples[0].meta["prompts"]
    return {
        "accuracy": mean(right),
        "image_accuracy": mean(shown),
        "with_image": len(shown),
        "prompts": prompts,
    }


def _right(sample: Sample, text: str) -> bool:
    chosen = letter(text.strip())
    offered = _LETTERS[: sample.meta["choices"]]
    return chosen is not None and chosen in offered and offered.index(chosen) == sample.meta["answer"]

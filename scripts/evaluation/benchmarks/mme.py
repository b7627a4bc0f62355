"""MME: yes or no about perception and cognition, two questions per image (Fu et al., arXiv 2306.13394).

Data: ``MME_Benchmark_release_version``, a folder per task with images and text files of lines
"question<tab>answer", in some tasks in ``images/`` and ``questions_answers_YN/``; or parquet (question_id,
image, question, answer, category). LLaVA's prompt replaces "Please answer yes or no." by its own instruction.

Scoring: the official ``calculation.py``. A task's score is accuracy over questions plus accuracy+ over images
(both of its questions right), in per cent. Perception and cognition are sums over their tasks, 2,000 and 800
at most.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from evaluation.benchmarks.base import SHORT, Sample, find, image_of, locate, mean, read

NEW_TOKENS = 128

PERCEPTION = (
    "existence",
    "count",
    "position",
    "color",
    "posters",
    "celebrity",
    "scene",
    "landmark",
    "artwork",
    "OCR",
)
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")
_THEIRS = "Please answer yes or no."


def load(path: Path) -> Iterator[Sample]:
    files = find(path, *(f"{task}/**/*.txt" for task in PERCEPTION), "*.parquet")
    if files[0].suffix == ".parquet":
        for row in (row for file in files for row in read(file)):
            yield _sample(
                row["category"], row["question_id"], row["question"], row["answer"], image_of(row["image"])
            )
        return
    for task in PERCEPTION + COGNITION:
        for file in sorted(path.rglob(f"{task}/**/*.txt")):
            image = _beside(file)
            for line in filter(str.strip, file.read_text(encoding="utf-8").splitlines()):
                question, _, answer = line.partition("\t")
                yield _sample(task, file.stem, question, answer, image)


def _beside(file: Path) -> Path:
    folder = file.parent.with_name("images") if file.parent.name == "questions_answers_YN" else file.parent
    kinds = [kind for kind in (".jpg", ".png", ".jpeg") if (folder / f"{file.stem}{kind}").is_file()]
    return locate(f"{file.stem}{kinds[0] if kinds else '.jpg'}", folder)


def _sample(task: str, shown: str, question: str, answer: str, image: Path | bytes) -> Sample:
    asked = question.replace(_THEIRS, "").strip()
    meta = {"task": task, "image": f"{task}/{shown}", "answer": answer.strip().strip(".").lower()}
    return Sample(f"{task}/{shown}/{asked}", image, asked + SHORT, meta)


def said(text: str) -> str:
    """Return yes or no if the first four letters contain it."""
    start = text.strip().lower()[:4]
    return "yes" if "yes" in start else "no" if "no" in start else "other"


def score(samples: Sequence[Sample], answers: Sequence[str]) -> dict[str, Any]:
    images: dict[str, dict[str, list[bool]]] = {}
    for sample, text in zip(samples, answers, strict=True):
        of_task = images.setdefault(sample.meta["task"], {})
        of_task.setdefault(sample.meta["image"], []).append(said(text) == sample.meta["answer"])
    tasks = {task: _of_task(list(of_task.values())) for task, of_task in images.items()}
    total = {name: sum(tasks[t]["score"] for t in group if t in tasks) for name, group in _GROUPS.items()}
    return {**total, "tasks": tasks}


_GROUPS = {"perception": PERCEPTION, "cognition": COGNITION}


def _of_task(images: Sequence[Sequence[bool]]) -> dict[str, float]:
    accuracy = 100 * mean(hit for hits in images for hit in hits)
    plus = 100 * mean(all(hits) for hits in images)
    return {"score": accuracy + plus, "accuracy": accuracy, "accuracy_plus": plus, "images": len(images)}

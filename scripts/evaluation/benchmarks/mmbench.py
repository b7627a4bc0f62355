"""MMBench: multiple choice on twenty abilities (Liu et al., arXiv 2307.06281).

A question is asked once per order of its options.

Data: the official .tsv (index, question, hint, A, B, C, D, answer, category, image as base64) or parquet with
these columns. In the official files the other orders are rows whose index is higher by multiples of a
million. If there are none, the options are rotated here, as LLaVA does with ``--all-rounds``.

Scoring: *circular* counts a question if it is answered correctly in every order, *vanilla* in the order of
the file. The letter is found by the rules of the official evaluation. The official evaluation asks a language
model if they fail; here such answers are wrong. Without an ``answer`` column (the test split) there is only
the submission, an .xlsx file for the server.
"""

from __future__ import annotations

import base64
import string
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from evaluation.benchmarks.base import LETTER, Sample, find, image_of, mean, read
from evaluation.benchmarks.xlsx import write_sheet

NEW_TOKENS = 128

_LETTERS = "ABCDE"
_TURN = 1_000_000
_UNSENT = ("hint", "category", "source", "image", "comment", "l2-category")
_AROUND = [
    ("", ""),
    ("", "."),
    ("", ","),
    ("", ":"),
    ("", ")"),
    ("", ")."),
    ("(", ")"),
    ("(", ")."),
    (":", ""),
]
_AROUND += [(":", ","), (":", "."), (":", ")"), (":", ").")]


def load(path: Path) -> Iterator[Sample]:
    for file in find(path, "*.tsv", "*.parquet"):
        turned = any(int(row["index"]) >= _TURN for row in read(file))
        images: dict[int, bytes | Path] = {}
        for row in read(file):
            number = int(row["index"]) % _TURN
            if _there(row.get("image")):  # a row may name another row whose image it shares
                images[number] = _image(row["image"], images)
            options = [row[letter] for letter in _LETTERS if _there(row.get(letter))]
            for turn in range(1 if turned else len(options)):
                yield _sample(row, options[turn:] + options[:turn], turn, images[number])


def _image(value: Any, images: dict[int, bytes | Path]) -> bytes | Path:
    if not isinstance(value, str):
        return image_of(value)
    return images[int(value)] if value.isdigit() else base64.b64decode(value)


def _there(value: Any) -> bool:
    return value is not None and str(value).lower() not in ("", "nan", "none")


def _sample(row: dict[str, Any], options: list[str], turn: int, image: bytes | Path) -> Sample:
    hint = f"{row['hint']}\n" if _there(row.get("hint")) else ""
    lines = "".join(f"\n{letter}. {option}" for letter, option in zip(_LETTERS, options, strict=False))
    answer = row["answer"] if _there(row.get("answer")) else None
    meta = {
        "question": int(row["index"]) % _TURN,
        "first": turn == 0 and int(row["index"]) < _TURN,
        "turn": turn,
        "options": options,
        "answer": answer and _LETTERS[(_LETTERS.index(answer) - turn) % len(options)],
        "category": row.get("category"),
        "row": {key: value for key, value in row.items() if key.lower() not in _UNSENT}
        | {"index": int(row["index"])},
    }
    return Sample(f"{row['index']}/{turn}", image, f"{hint}{row['question']}{lines}{LETTER}", meta)


def letter(text: str, options: Sequence[str]) -> str | None:
    """Return the chosen letter, or None.

    It is the only letter that stands alone, then the only one with punctuation around it, then the letter of
    the only option whose words occur.
    """
    words = text.split()
    for before, after in _AROUND:
        found = [each for each in _LETTERS if before + each + after in words]
        article = (before, after) == ("", "") and "A" in words and len(words) > 3
        if len(found) == 1 and not article:
            return found[0]
    named = [
        each for each, option in zip(_LETTERS, options, strict=False) if str(option).lower() in text.lower()
    ]
    return named[0] if len(named) == 1 else None


def score(samples: Sequence[Sample], answers: Sequence[str]) -> dict[str, Any]:
    if any(sample.meta["answer"] is None for sample in samples):
        return {
            "circular": None,
            "vanilla": None,
            "note": "without answers; --submit writes the file for the server",
        }
    turns: dict[int, list[tuple[bool, Sample]]] = {}
    for sample, text in zip(samples, answers, strict=True):
        right = letter(text, sample.meta["options"]) == sample.meta["answer"]
        turns.setdefault(sample.meta["question"], []).append((right, sample))
    hits = {number: all(right for right, _ in of_question) for number, of_question in turns.items()}
    kinds = {number: of_question[0][1].meta["category"] for number, of_question in turns.items()}
    return {
        "circular": mean(hits.values()),
        "vanilla": mean(right for each in turns.values() for right, sample in each if sample.meta["first"]),
        "categories": {
            kind: mean(hits[number] for number in hits if kinds[number] == kind)
            for kind in sorted(set(kinds.values()), key=str)
        },
    }


def submit(samples: Sequence[Sample], answers: Sequence[str], file: Path) -> None:
    """Write the submission like LLaVA's ``convert_mmbench_for_submission.py``.

    It is the table without images, with ``prediction`` after the options.
    """
    rows = [(s.meta["row"], text) for s, text in zip(samples, answers, strict=True) if s.meta["turn"] == 0]
    columns = list(rows[0][0])
    place = 1 + max(at for at, name in enumerate(columns) if name in string.ascii_uppercase)
    head = [*columns[:place], "prediction", *columns[place:]]
    write_sheet(
        file, [head, *([(row | {"prediction": text}).get(name) for name in head] for row, text in rows)]
    )

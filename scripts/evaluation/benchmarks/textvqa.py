"""TextVQA: questions about text in the image, with ten human answers each (Singh et al., CVPR 2019).

Data: ``TextVQA_0.5.1_val.json`` ({"data": [question, image_id, question_id, answers]}) with
``train_images/<image_id>.jpg`` (as in ``train_val_images.zip``); or parquet (question_id, question, image,
answers). If LLaVA's ``llava_textvqa_val_v051_ocr.jsonl`` is beside the JSON, its prompts are used. They
contain the words that an OCR system read: LLaVA-1.5-7B has 58.2 with them and 47 without. ``prompts`` of the
result says which ones were used.

Scoring: VQA accuracy is the mean over the ten answers of min(1, matches among the other nine / 3). Both sides
first go through EvalAI's answer processor, with the quirks of its code: if there is a comma between digits,
every punctuation mark is removed instead of becoming a space, and periods are kept only before digits.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from evaluation.benchmarks.base import SHORT, Sample, find, image_of, locate, mean, read

NEW_TOKENS = 128

_LLAVA = "llava_textvqa_val_v051_ocr.jsonl"


def load(path: Path) -> Iterator[Sample]:
    files = find(path, "TextVQA_*_val.json", "*.parquet")
    if files[0].suffix == ".parquet":
        for row in (row for file in files for row in read(file)):
            yield _sample(row, image_of(row["image"]), _prompt(row["question"]), "plain")
        return
    rows = json.loads(files[0].read_text(encoding="utf-8"))["data"]
    folders = [
        place / name
        for place in (files[0].parent, path)
        for name in ("train_images", "train_val_images/train_images", "")
    ]
    theirs = files[0].with_name(_LLAVA)
    prompts = (
        {(row["question_id"], _question(row["text"])): row["text"] for row in read(theirs)}
        if theirs.is_file()
        else {}
    )
    for row in rows:
        prompt = prompts[row["image_id"], row["question"].lower()] if prompts else _prompt(row["question"])
        image = locate(f"{row['image_id']}.jpg", *folders)
        yield _sample(row, image, prompt, _LLAVA if prompts else "plain")


def _sample(row: dict[str, Any], image: Path | bytes, prompt: str, prompts: str) -> Sample:
    return Sample(str(row["question_id"]), image, prompt, {"answers": row["answers"], "prompts": prompts})


def _prompt(question: str) -> str:
    return question.strip().capitalize() + SHORT


def _question(prompt: str) -> str:
    """Return the question in a prompt of LLaVA: question, OCR words and instruction, a line each."""
    return prompt.split("\n")[0].lower()


def score(samples: Sequence[Sample], answers: Sequence[str]) -> dict[str, Any]:
    each = [accuracy(text, s.meta["answers"]) for s, text in zip(samples, answers, strict=True)]
    return {"accuracy": mean(each), "prompts": samples[0].meta["prompts"]}


def accuracy(said: str, humans: Sequence[str]) -> float:
    """Return the VQA accuracy.

    Each human answer is left out in turn; three matches among the rest score 1.
    """
    said, humans = processed(said), [processed(human) for human in humans]
    agree = humans.count(said)
    return mean(min(1.0, (agree - (human == said)) / 3) for human in humans)


def processed(text: str) -> str:
    """Return EvalAI's normal form of an answer."""
    text = text.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    text = text.replace("\n", " ").replace("\t", " ").strip()
    words = [_DIGITS.get(word, word) for word in _unpunctuated(text).lower().split()]
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in ("a", "an", "the"))


def _unpunctuated(text: str) -> str:
    vanish = _COMMA.search(text) is not None
    result = text
    for mark in _MARKS:
        apart = f"{mark} " in text or f" {mark}" in text
        result = result.replace(mark, "" if vanish or apart else " ")
    return _PERIOD.sub("", result, count=32)  # their code passes re.UNICODE, which is 32, as the count


_MARKS = ';/[]"{}()=+\\_-><@`,?!'
_PERIOD, _COMMA = re.compile(r"(?!<=\d)\.(?!\d)"), re.compile(r"(?<=\d),+(?=\d)")
_DIGITS = {
    word: str(n)
    for n, word in enumerate(
        ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
    )
}
_DIGITS["none"] = "0"

# Contractions that lost their only apostrophe, or one of several, get all of them back.
# The keys are derived from these forms.
_SINGLE = """ain't aren't can't could've couldn't didn't doesn't don't hadn't hasn't haven't he'd he's
how'd how'll how's isn't it'd it'll ma'am mightn't might've mustn't must've needn't not've o'clock
oughtn't shan't should've shouldn't somebody'll somebody's someone'd someone'll someone's something'd
something'll that's there'd there're there's they'd they'll they're they've 'twas wasn't we've weren't
what'll what're what's what've when's where'd where's where've who'd who'll who's who've why'll why're
why's won't would've wouldn't y'all you'd you'll you're you've"""
_SEVERAL = """couldn't've hadn't've he'd've it'd've mightn't've she'd've shouldn't've somebody'd've
someone'd've something'd've there'd've they'd've we'd've who'd've wouldn't've you'd've y'all'll
y'all'd've 'ow's'at"""


def _contractions() -> dict[str, str]:
    forms = {form.replace("'", ""): form for form in _SINGLE.split()}
    for form in _SEVERAL.split():
        forms |= {form[:at] + form[at + 1 :]: form for at, letter in enumerate(form) if letter == "'"}
    forms["somebody'd"] = "somebodyd"  # their table has this pair the wrong way round
    return forms


_CONTRACTIONS = _contractions()

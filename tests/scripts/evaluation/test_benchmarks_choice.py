"""Benchmarks answered by a letter: published files are read, and scored as examples by hand."""

from __future__ import annotations

import base64
import csv
import zipfile
from pathlib import Path
from xml.etree import ElementTree

import pytest
from benchmark_files import draw, load, parquet, png, write

from evaluation.benchmarks.mmbench import letter as found

LETTER = "\nAnswer with the option's letter from the given choices directly."


def table(file: Path, rows: list[dict]) -> None:
    with file.open("w", newline="") as lines:
        writer = csv.DictWriter(lines, list(rows[0]), delimiter="\t")
        writer.writeheader()
        writer.writerows(rows)


def choice(
    index: int, answer: str | None, *options: str, hint: str = "nan", image: str | None = None
) -> dict:
    letters = dict(zip("ABCD", [*options, *["nan"] * (4 - len(options))], strict=True))
    row = {
        "index": index,
        "question": f"Q{index % 1000000}?",
        "hint": hint,
        **letters,
        "answer": answer,
        "category": "kind",
    }
    encoded = image or base64.b64encode(png(index % 1000000)).decode()
    row |= {"image": encoded, "source": "s", "l2-category": "l2", "comment": "nan", "split": "dev"}
    return row if answer else {key: value for key, value in row.items() if key != "answer"}


def sheet(file: Path) -> list[list[str]]:
    with zipfile.ZipFile(file) as archive:
        for name in archive.namelist():
            ElementTree.fromstring(archive.read(name))
        root = ElementTree.fromstring(archive.read("xl/worksheets/sheet1.xml"))
    name = "{http://schemas.openxmlformats.org/spreadsheetml/2006/main}"
    return [["".join(cell.itertext()) for cell in row.iter(f"{name}c")] for row in root.iter(f"{name}row")]


def test_scienceqa(tmp_path):
    problems = {
        "4": {
            "question": "Which?",
            "choices": ["up", "down"],
            "answer": 1,
            "hint": "Look.",
            "image": "image.png",
        },
        "8": {"question": "Why?", "choices": ["so", "thus", "then"], "answer": 0, "hint": "", "image": None},
        "9": {"question": "Train", "choices": ["a", "b"], "answer": 0, "hint": "", "image": None},
    }
    write(tmp_path / "problems.json", problems)
    write(tmp_path / "pid_splits.json", {"train": ["9"], "test": ["4", "8"]})
    draw(tmp_path / "images/test/4/image.png")
    module, samples = load("scienceqa", tmp_path)
    assert samples[0].prompt == "Context: Look.\nWhich?\nA. up\nB. down" + LETTER
    assert samples[1].prompt == "Why?\nA. so\nB. thus\nC. then" + LETTER and samples[1].image is None
    named = {
        "B": "B",
        "B. down": "B",
        "The answer is C.": "C",
        "b": None,
        "(B)": None,
        "It is B": None,
        "F": None,
    }
    assert {text: module.letter(text) for text in named} == named
    scores = module.score(samples, ["B. down", "C"])
    assert scores == {"accuracy": 0.5, "image_accuracy": 1.0, "with_image": 1, "prompts": "plain"}
    assert module.score(samples, ["C", "A"])["accuracy"] == 0.5  # C is no option of the first

    talks = [
        {"id": "4", "image": "4/image.png", "conversations": [{"from": "human", "value": "<image>\nTheirs"}]}
    ]
    talks += [{"id": "8", "conversations": [{"from": "human", "value": "Other"}]}]
    write(tmp_path / "llava_test_CQM-A.json", talks)
    assert [s.prompt for s in load("scienceqa", tmp_path)[1]] == ["Theirs" + LETTER, "Other" + LETTER]


def test_scienceqa_from_the_hub(tmp_path):
    shared = {"question": "Q?", "choices": ["x", "y"], "hint": ""}
    rows = [
        {**shared, "answer": 0, "image": {"bytes": png(), "path": None}},
        {**shared, "answer": 1, "image": None},
    ]
    parquet(tmp_path / "test.parquet", rows)
    module, samples = load("scienceqa", tmp_path)
    assert [s.image for s in samples] == [png(), None]
    assert module.score(samples, ["A", "A"])["image_accuracy"] == 1


def test_mmbench_makes_the_other_orders(tmp_path):
    table(tmp_path / "dev.tsv", [choice(1, "C", "x", "y", "z", hint="See."), choice(2, "A", "u", "v")])
    module, samples = load("mmbench", tmp_path)
    assert [s.id for s in samples] == ["1/0", "1/1", "1/2", "2/0", "2/1"]
    assert samples[0].prompt == "See.\nQ1?\nA. x\nB. y\nC. z" + LETTER
    assert samples[1].prompt == "See.\nQ1?\nA. y\nB. z\nC. x" + LETTER
    assert [s.meta["answer"] for s in samples] == ["C", "B", "A", "A", "B"]
    assert [s.image for s in samples] == [png(1)] * 3 + [png(2)] * 2
    scores = module.score(samples, ["C", "B. z", "(A)", "A", "A"])
    assert scores == {"circular": 0.5, "vanilla": 1.0, "categories": {"kind": 0.5}}


def test_mmbench_takes_the_orders_of_the_file(tmp_path):
    rows = [choice(1, "A", "x", "y"), choice(1000001, "B", "y", "x", image="1"), choice(2, "B", "u", "v")]
    table(tmp_path / "dev.tsv", rows)
    module, samples = load("mmbench", tmp_path)
    assert [s.id for s in samples] == ["1/0", "1000001/0", "2/0"] and samples[1].image == png(1)
    scores = module.score(samples, ["A", "A", "v is right"])
    assert scores == {"circular": 0.5, "vanilla": 1.0, "categories": {"kind": 0.5}}


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("B", "B"), ("B.", "B"), ("(C)", "C"), ("The answer is D", "D"), ("A dog and B", "B"),
        ("B or C", None), ("A cat sits on mats", "A"), ("a cat", "A"), ("cat or dog", None),
        ("none of them", None), ("answer: B)", "B"),
    ],
)  # fmt: skip
def test_mmbench_finds_the_letter(text, letter):
    assert found(text, ["cat", "dog", "bird", "fish"]) == letter


def test_mmbench_s_test_split_is_written_for_the_server(tmp_path):
    table(tmp_path / "test.tsv", [choice(1, None, "x & <y>", "z"), choice(2, None, "u", "v")])
    module, samples = load("mmbench", tmp_path)
    assert module.score(samples, ["A"] * 4)["circular"] is None
    module.submit(samples, ["A", "B", "z\x00", "C"], tmp_path / "out.xlsx")
    rows = sheet(tmp_path / "out.xlsx")
    assert rows[0] == ["index", "question", "A", "B", "C", "D", "prediction", "split"]
    assert rows[1] == ["1", "Q1?", "x & <y>", "z", "nan", "nan", "A", "dev"]
    assert rows[2][6] == "z"  # a character that XML does not take is left out

"""scripts/benchmarks: the published file layouts are read, and scored by hand-computed examples as their authors do."""

from __future__ import annotations

import base64
import csv
import io
import json
import zipfile
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from foveate.engines.errors import UserError

SCRIPTS = Path(__file__).parents[2] / "scripts"
SHORT = "\nAnswer the question using a single word or phrase."
LETTER = "\nAnswer with the option's letter from the given choices directly."


@pytest.fixture(autouse=True)
def scripts(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))


def load(name: str, path: Path):
    from benchmarks import benchmark

    return benchmark(name), list(benchmark(name).load(path))


def draw(file: Path, size: tuple[int, int] = (12, 8), seed: int = 0) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    Image.fromarray(pixels).save(file)
    return file


def png(seed: int = 0) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (8, 8, 3), np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def write(file: Path, data, lines: bool = False) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in data) if lines else json.dumps(data))


def parquet(file: Path, rows: list[dict]) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow.parquet import write_table

    file.parent.mkdir(parents=True, exist_ok=True)
    write_table(pyarrow.Table.from_pylist(rows), file)


def test_pope(tmp_path):
    labels = {"random": ["yes", "yes", "no", "no"], "adversarial": ["yes", "no"]}
    for category, of_category in labels.items():
        rows = [
            {"question_id": n, "image": "a.png", "text": f"Is there a {n}?", "label": label}
            for n, label in enumerate(of_category, 1)
        ]
        write(tmp_path / f"coco/coco_pope_{category}.json", rows, lines=True)
    draw(tmp_path / "val2014/a.png")
    module, samples = load("pope", tmp_path)
    assert [s.id for s in samples] == [
        "adversarial/1",
        "adversarial/2",
        *(f"random/{n}" for n in (1, 2, 3, 4)),
    ]
    assert samples[0].prompt == "Is there a 1?" + SHORT and samples[0].image == tmp_path / "val2014/a.png"
    assert [module.said(t) for t in ("No", "there is not one", "nothing", "Yes, no. No", "Yes. No")] == [
        "no",
        "no",
        "yes",
        "no",
        "yes",
    ]
    # random: 1 hit, 1 miss, 1 false alarm, 1 right no; adversarial: all right
    scores = module.score(samples, ["Yes", "No", "Yes", "No, there is none.", "yes", "No"])
    assert scores["categories"]["random"] == {
        "accuracy": 0.5, "precision": 0.5, "recall": 0.5, "f1": 0.5, "yes_ratio": 0.5, "asked": 4
    }  # fmt: skip
    assert scores["categories"]["adversarial"]["f1"] == 1 and scores["f1"] == scores["accuracy"] == 0.75
    silent = module.score(samples, ["no"] * 6)  # nothing is divided by zero
    assert silent["precision"] == silent["f1"] == silent["yes_ratio"] == 0


def test_pope_from_the_hub(tmp_path):
    row = {
        "question_id": "1",
        "question": "Is it?",
        "answer": "Yes",
        "category": "popular",
        "image": {"bytes": png(), "path": None},
    }
    parquet(tmp_path / "test-00000-of-00001.parquet", [row])
    module, (sample,) = load("pope", tmp_path)
    assert (sample.id, sample.image) == ("popular/1", png())
    assert module.score([sample], ["yes"])["categories"]["popular"]["accuracy"] == 1


def test_gqa(tmp_path):
    questions = {
        "201": {"question": "Is it red?", "answer": "no", "imageId": "n1", "types": {"structural": "verify"}},
        "202": {
            "question": "What is it?",
            "answer": "chair",
            "imageId": "n1",
            "types": {"structural": "query"},
        },
        "203": {"question": "Who is it?", "answer": "man", "imageId": "n2", "types": {"structural": "query"}},
    }
    write(tmp_path / "testdev_balanced_questions.json", questions)
    for name in ("n1", "n2"):
        draw(tmp_path / f"images/{name}.jpg")
    module, samples = load("gqa", tmp_path)
    assert [s.prompt for s in samples] == [q["question"] + SHORT for q in questions.values()]
    scores = module.score(samples, ["No.", "Chair", "a man"])
    assert scores == {"accuracy": 2 / 3, "binary": 1.0, "open": 0.5}


def test_gqa_from_the_hub(tmp_path):
    parquet(
        tmp_path / "testdev_balanced_images/a.parquet",
        [{"id": "n1", "image": {"bytes": png(1), "path": "n1.jpg"}}],
    )
    parquet(
        tmp_path / "testdev_balanced_instructions/a.parquet",
        [{"id": "7", "imageId": "n1", "question": "Is it?", "answer": "yes"}],
    )
    module, (sample,) = load("gqa", tmp_path)
    assert sample.image == png(1) and module.score([sample], ["Yes"]) == {"accuracy": 1.0}


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("The Two dogs!", "2 dogs"),
        ("none", "0"),
        ("dont", "don't"),
        ("couldntve couldn'tve", "couldntve couldn't've"),
        ("yall'll", "y'all'll"),
        ("$1,000.50", "$1000.50"),  # the comma goes first
        ("a.m.", "am"),
        ("3.5 oz.", "3.5 oz"),
        ("coca-cola", "coca cola"),
        ("coca - cola", "coca cola"),
        ("John's", "john 's"),
        ("it's\tan\nO'clock", "it 's o'clock"),
        ("oclock", "o'clock"),
        ("", ""),
    ],
)
def test_answers_in_evalai_s_normal_form(text, normal):
    from benchmarks.textvqa import processed

    assert processed(text) == normal


def test_textvqa(tmp_path):
    humans = ["red"] * 3 + ["Red!"] + ["dark red"] * 2 + ["blue"] * 4
    rows = [{"question": "what color is IT?", "image_id": "ab", "question_id": 5, "answers": humans}]
    write(tmp_path / "TextVQA_0.5.1_val.json", {"data": rows})
    draw(tmp_path / "train_images/ab.jpg")
    module, (sample,) = load("textvqa", tmp_path)
    assert sample.prompt == "What color is it?" + SHORT
    # four say red: leaving one of them out three remain (1), leaving another out four (1)
    assert module.accuracy("red", humans) == 1
    # two say dark red: leaving one of them out 1/3, leaving another out 2/3
    assert module.accuracy("Dark red.", humans) == pytest.approx((2 * 1 / 3 + 8 * 2 / 3) / 10)
    assert module.score([sample], ["green"]) == {"accuracy": 0.0, "prompts": "plain"}

    asked = "What color is it?\nReference OCR token: STOP, 7" + SHORT
    theirs = {"question_id": "ab", "image": "ab.jpg", "text": asked, "category": "default"}
    write(tmp_path / "llava_textvqa_val_v051_ocr.jsonl", [theirs], lines=True)
    module, (sample,) = load("textvqa", tmp_path)
    assert sample.prompt == asked and module.score([sample], ["blue"])["prompts"].startswith("llava_")


def test_textvqa_from_the_hub(tmp_path):
    row = {
        "question_id": 9,
        "question": "what?",
        "answers": ["stop"] * 10,
        "image": {"bytes": png(), "path": None},
    }
    parquet(tmp_path / "validation.parquet", [row])
    module, (sample,) = load("textvqa", tmp_path)
    assert sample.id == "9" and module.score([sample], ["Stop"])["accuracy"] == 1


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


def test_mme(tmp_path):
    root = tmp_path / "MME_Benchmark_release_version"
    asked = "Is there a cat? Please answer yes or no.\tYes\nIs there a dog? Please answer yes or no.\tNo\n"
    for name in ("001", "002"):
        draw(root / f"existence/{name}.jpg")
        (root / f"existence/{name}.txt").write_text(asked)
    draw(root / "artwork/images/9.jpg")
    text = root / "artwork/questions_answers_YN/9.txt"
    text.parent.mkdir()
    text.write_text("Is it oil? Please answer yes or no.\tYes\nIs it ink? Please answer yes or no.\tNo")
    draw(root / "code_reasoning/3.png")
    (root / "code_reasoning/3.txt").write_text(
        "Is it 1?  Please answer yes or no.\tYes\nIs it 2?  Please answer yes or no.\tNo\n"
    )
    module, samples = load("mme", tmp_path)
    assert len(samples) == 8 and samples[0].prompt == "Is there a cat?" + SHORT
    assert samples[4].image == root / "artwork/images/9.jpg"
    # existence: 3 of 4 questions, 1 of 2 pictures; artwork: 1 of 2, none; code: all
    scores = module.score(samples, ["yes", "No.", "Yes", "yes", "Yes, oil", "yes", "yes", "no"])
    assert scores["tasks"]["existence"] == {
        "score": 125.0,
        "accuracy": 75.0,
        "accuracy_plus": 50.0,
        "pictures": 2,
    }
    assert scores["tasks"]["artwork"]["score"] == 50 and scores["tasks"]["code_reasoning"]["score"] == 200
    assert (scores["perception"], scores["cognition"]) == (175, 200)
    assert [module.said(t) for t in ("YES", "no way", "know", "I know", "")] == [
        "yes",
        "no",
        "no",
        "other",
        "other",
    ]


def test_mme_from_the_hub(tmp_path):
    shared = {"question_id": "count/7.png", "category": "count", "image": {"bytes": png(), "path": None}}
    rows = [
        {**shared, "question": "Are there two? Please answer yes or no.", "answer": "Yes"},
        {**shared, "question": "Are there three? Please answer yes or no.", "answer": "No"},
    ]
    parquet(tmp_path / "test.parquet", rows)
    module, samples = load("mme", tmp_path)
    assert module.score(samples, ["yes", "no"])["perception"] == 200


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
    picture = image or base64.b64encode(png(index % 1000000)).decode()
    row |= {"image": picture, "source": "s", "l2-category": "l2", "comment": "nan", "split": "dev"}
    return row if answer else {key: value for key, value in row.items() if key != "answer"}


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
        ("B", "B"), ("B.", "B"), ("(C)", "C"), ("The answer is D", "D"), ("A dog and B", "B"), ("B or C", None),
        ("A cat sits on mats", "A"), ("a cat", "A"), ("cat or dog", None), ("none of them", None), ("answer: B)", "B"),
    ],
)  # fmt: skip
def test_mmbench_finds_the_letter(text, letter):
    from benchmarks.mmbench import letter as found

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


def sheet(file: Path) -> list[list[str]]:
    with zipfile.ZipFile(file) as archive:
        for name in archive.namelist():
            ElementTree.fromstring(archive.read(name))
        root = ElementTree.fromstring(archive.read("xl/worksheets/sheet1.xml"))
    name = "{http://schemas.openxmlformats.org/spreadsheetml/2006/main}"
    return [["".join(cell.itertext()) for cell in row.iter(f"{name}c")] for row in root.iter(f"{name}row")]


def test_refcoco(tmp_path):
    rows = [
        {
            "image": "coco/train2014/a.jpg",
            "sent": "left man.",
            "bbox": [10, 20, 50, 80],
            "width": 100,
            "height": 100,
        },
        {"img_path": "a.jpg", "expression": "dog", "bbox": [0, 0, 100, 50], "width": 100, "height": 100},
    ]
    write(tmp_path / "refcoco_testA.jsonl", rows, lines=True)
    draw(tmp_path / "train2014/a.jpg", (100, 100))
    module, samples = load("refcoco", tmp_path)
    ask = "Please provide the bounding box coordinate of the region this sentence describes: "
    assert [s.prompt for s in samples] == [ask + "left man.", ask + "dog."]
    assert samples[0].meta["box"] == (10, 20, 50, 80)
    # what a picture of 200 x 100, padded, answers: shares of the square from -50 to 150 down
    assert module.said("[0.25, .5, 0.50, 0.75]", (0, -50, 200, 150)) == (50, 50, 100, 100)
    assert module.said("It is there.", (0, 0, 1, 1)) is None
    assert module.overlap((0, 0, 10, 10), (5, 0, 15, 10)) == pytest.approx(50 / 150)
    assert module.overlap((0, 0, 1, 1), (2, 2, 3, 3)) == module.overlap((1, 1, 1, 1), (1, 1, 1, 1)) == 0
    for sample in samples:
        sample.meta["seen"] = (0, 0, 100, 100)
    scores = module.score(samples, ["[0.10, 0.20, 0.50, 0.80]", "at [0, 0, 1, 1]"])
    assert scores == {"accuracy": 1.0, "mean_iou": 0.75, "without_box": 0}  # an IoU of exactly 0.5 counts
    assert module.score(samples, ["[0.5, 0.2, 0.9, 0.8]", "?"]) == {
        "accuracy": 0.0,
        "mean_iou": 0.0,
        "without_box": 1,
    }


def test_refcoco_from_the_hub(tmp_path):
    row = {"image": {"bytes": png(), "path": None}, "bbox": [1.0, 2.0, 3.0, 4.0], "answer": ["a", "b"]}
    parquet(tmp_path / "val.parquet", [row])
    _, samples = load("refcoco", tmp_path)
    assert [s.meta["box"] for s in samples] == [(1, 2, 4, 6)] * 2
    assert [s.prompt[-3:] for s in samples] == [" a.", " b."]


def test_what_is_missing_is_named(tmp_path, monkeypatch):
    from benchmarks import benchmark
    from benchmarks.base import read

    with pytest.raises(UserError, match=r"expected coco_pope_\*\.json or \*\.parquet"):
        list(benchmark("pope").load(tmp_path))
    write(
        tmp_path / "coco_pope_random.json",
        [{"question_id": 1, "image": "x.jpg", "text": "?", "label": "no"}],
        lines=True,
    )
    with pytest.raises(UserError, match=r"picture x\.jpg is missing"):
        list(benchmark("pope").load(tmp_path))
    with pytest.raises(UserError, match="did you mean pope"):
        benchmark("popes")
    (tmp_path / "a.parquet").write_bytes(b"")
    monkeypatch.setitem(__import__("sys").modules, "pyarrow.parquet", None)
    with pytest.raises(UserError, match="pip install pyarrow"):
        list(read(tmp_path / "a.parquet"))


def test_pictures_are_padded_as_llava_does(tmp_path):
    from benchmarks.base import padded

    image = Image.new("RGB", (6, 3), (255, 0, 0))
    square, left, top = padded(image, (0.48145466, 0.4578275, 0.40821073))
    assert square.size == (6, 6) and (left, top) == (0, 1)
    assert square.getpixel((0, 0)) == square.getpixel((5, 4)) == (122, 116, 104) and square.getpixel(
        (0, 1)
    ) == (255, 0, 0)


def test_from_the_command_to_scores(uniform_bundle, tmp_path, monkeypatch, capsys):
    """Random weights: what matters is that every sample is asked once, of the right picture, and scored."""
    import accuracy
    from benchmarks import run

    rows = [
        {"image": "wide.png", "sent": "it", "bbox": [0, 0, 9, 9]},
        {"image": "wide.png", "sent": "that", "bbox": [0, 0, 9, 9]},
    ]
    write(
        tmp_path / "data/refcoco.jsonl",
        [*rows, {"image": "tall.png", "sent": "it", "bbox": [0, 0, 9, 9]}],
        lines=True,
    )
    draw(tmp_path / "data/wide.png", (40, 20))
    draw(tmp_path / "data/tall.png", (20, 60))
    looked, see = [], run.Pipeline.see
    monkeypatch.setattr(
        run.Pipeline, "see", lambda pipe, image: looked.append(image.size) or see(pipe, image)
    )
    command = [
        "refcoco",
        "--data",
        str(tmp_path / "data"),
        "--bundle",
        str(uniform_bundle),
        "--work",
        str(tmp_path / "work"),
    ]
    assert accuracy.main([*command, "--keep", "5", "50%", "--limit", "2"]) == 0
    document = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert looked == [(40, 40)] * 2  # a look per budget serves both questions
    assert document["asked"] == 2 and [r["kept"] for r in document["results"]] == [5, 8]
    looked.clear()
    assert accuracy.main([*command, "--keep", "5"]) == 0
    assert looked == [(60, 60)]  # the others were answered before
    logs = sorted((tmp_path / "work/refcoco").glob("*.jsonl"))
    records = [json.loads(line) for log in logs for line in log.read_text().splitlines()]
    assert len(records) == 5
    boxes = {tuple(record["seen"]) for record in records}
    assert boxes == {(0, -10, 40, 30), (-20, 0, 40, 60)}
    looked.clear()
    assert accuracy.main([*command, "--keep", "5", "--as-is", "--limit", "1"]) == 0 and looked == [(40, 20)]
    assert accuracy.main([*command, "--keep", "5", "--submit", str(tmp_path / "x")]) == 2
    assert accuracy.main(["pope", *command[1:]]) == 2
    assert "no questions found" in capsys.readouterr().err

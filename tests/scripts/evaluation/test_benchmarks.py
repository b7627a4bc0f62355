"""Benchmarks with boxes are read and scored, and what is missing is named, from command to scores."""

from __future__ import annotations

import json

import accuracy
import pytest
from benchmark_files import draw, load, parquet, png, write
from PIL import Image

from evaluation.benchmarks import benchmark, run
from evaluation.benchmarks.base import padded, read
from foveate.engines.errors import UserError


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
    # what an image of 200 x 100, padded, answers: shares of the square from -50 to 150 down
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


def test_missing_files_are_named(tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"expected coco_pope_\*\.json or \*\.parquet"):
        list(benchmark("pope").load(tmp_path))
    write(
        tmp_path / "coco_pope_random.json",
        [{"question_id": 1, "image": "x.jpg", "text": "?", "label": "no"}],
        lines=True,
    )
    with pytest.raises(UserError, match=r"image x\.jpg is missing"):
        list(benchmark("pope").load(tmp_path))
    with pytest.raises(UserError, match="did you mean pope"):
        benchmark("popes")
    (tmp_path / "a.parquet").write_bytes(b"")
    monkeypatch.setitem(__import__("sys").modules, "pyarrow.parquet", None)
    with pytest.raises(UserError, match="pip install pyarrow"):
        list(read(tmp_path / "a.parquet"))


def test_images_are_padded_as_llava_does(tmp_path):
    image = Image.new("RGB", (6, 3), (255, 0, 0))
    square, left, top = padded(image, (0.48145466, 0.4578275, 0.40821073))
    assert square.size == (6, 6) and (left, top) == (0, 1)
    assert square.getpixel((0, 0)) == square.getpixel((5, 4)) == (122, 116, 104) and square.getpixel(
        (0, 1)
    ) == (255, 0, 0)


def test_from_the_command_to_scores(uniform_bundle, tmp_path, monkeypatch, capsys):
    """Random weights: what matters is that every sample is asked once, of the right image, and scored."""
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

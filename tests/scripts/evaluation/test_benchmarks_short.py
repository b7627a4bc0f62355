"""Benchmarks answered by a word: published files are read, and scored as examples by hand."""

from __future__ import annotations

import pytest
from benchmark_files import draw, load, parquet, png, write

from evaluation.benchmarks.textvqa import processed

SHORT = "\nAnswer the question using a single word or phrase."


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
    # existence: 3 of 4 questions, 1 of 2 images; artwork: 1 of 2, none; code: all
    scores = module.score(samples, ["yes", "No.", "Yes", "yes", "Yes, oil", "yes", "yes", "no"])
    assert scores["tasks"]["existence"] == {
        "score": 125.0,
        "accuracy": 75.0,
        "accuracy_plus": 50.0,
        "images": 2,
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

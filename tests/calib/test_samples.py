"""Calibration samples from every kind of source, and what is said of those that are none."""

from __future__ import annotations

import json

import pytest
from PIL import Image

from foveate.calib import samples
from foveate.calib.scenes.questions import HELD_OUT
from foveate.engines.errors import UserError


@pytest.fixture
def folder(tmp_path):
    for index, name in enumerate(("c.png", "a.PNG", "b.jpg")):
        Image.new("RGB", (8 + index, 8), (40 * index, 9, 9)).save(tmp_path / name)
    (tmp_path / "b.txt").write_text("What is it?\n")
    (tmp_path / "notes.md").write_text("no image")
    return tmp_path


def test_a_folder_gives_images_in_order_with_the_prompts_beside_them(folder):
    found = samples.load(str(folder))
    assert [each.image.name for each in found.items] == ["a.PNG", "b.jpg", "c.png"]
    assert [each.prompt for each in found.items] == [samples.PROMPTS[0], "What is it?", samples.PROMPTS[2]]


def test_fewer_than_there_are_come_at_even_distances(folder):
    assert [each.image.name for each in samples.load(str(folder), 2).items] == ["a.PNG", "b.jpg"]
    assert len(samples.load(str(folder), 99)) == 3


def test_lines_of_a_file_name_images_relative_to_it(folder):
    lines = [{"image": "c.png", "prompt": "one"}, {"image": str(folder / "b.jpg"), "prompt": "two"}]
    (folder / "s.jsonl").write_text("\n\n".join(map(json.dumps, lines)) + "\n")
    found = samples.load(str(folder / "s.jsonl"))
    assert [(each.image, each.prompt) for each in found.items] == [
        (folder / "c.png", "one"),
        (folder / "b.jpg", "two"),
    ]


def test_scenes_need_no_files_and_are_not_those_of_accuracy():
    found = samples.load("scenes", 3)
    again = samples.load("scenes", 3)
    assert found.digest == again.digest != samples.load("scenes", 2).digest
    assert all(each.prompt.endswith("?") for each in found.items)
    assert samples._FIRST_SCENE > HELD_OUT + 10**8


def test_the_digest_follows_images_and_prompts(folder):
    before = samples.load(str(folder)).digest
    (folder / "b.txt").write_text("What is that?")
    asked = samples.load(str(folder)).digest
    Image.new("RGB", (8, 8), (0, 0, 1)).save(folder / "c.png")
    assert len({before, asked, samples.load(str(folder)).digest}) == 3


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("", "is empty"),
        ("[1]", "it is a JSON list"),
        ("{image: 1}", "line 1 of"),
        ('{"image": "a.PNG"}', "its prompt is null"),
        ('{"image": "a.PNG", "prompt": " "}', 'its prompt is " "'),
        ('{"image": "a.PNG", "prompt": "?"}\n\n{"image": "z.png", "prompt": "?"}', "line 3 of"),
    ],
)
def test_a_wrong_line_is_named(folder, line, words):
    (folder / "s.jsonl").write_text(line)
    with pytest.raises(UserError, match=words):
        samples.load(str(folder / "s.jsonl"))


def test_a_path_without_samples_is_refused(folder, tmp_path_factory):
    empty = tmp_path_factory.mktemp("empty")
    (empty / "broken.png").write_bytes(b"\x89PNG")
    (folder / "b.txt").write_text("")
    (folder / "latin.jsonl").write_bytes(b"\xe4")
    for source, words in (
        (folder / "none", "no calibration samples"),
        (folder / "c.png", "one image"),
        (folder, "prompt in .*b.txt is empty"),
        (folder / "latin.jsonl", "not text in UTF-8"),
        (empty, "broken.png"),
    ):
        with pytest.raises(UserError, match=words):
            samples.load(str(source))
    (empty / "broken.png").unlink()
    with pytest.raises(UserError, match="no images"):
        samples.load(str(empty))
    with pytest.raises(UserError, match="calibration-count"):
        samples.load("scenes", 0)

"""Scenes are the same for the same seed, and every answer is true."""

from __future__ import annotations

import re
from collections import Counter, defaultdict

import numpy as np
import pytest

from foveate.calib.scenes.questions import (
    CELLS,
    COLOURS,
    GLYPHS,
    HELD_OUT,
    KINDS,
    SHAPES,
    SIDE,
    Question,
    Scene,
    ask,
    captions,
    make_scene,
    questions,
)

SCENES = 300


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [make_scene(HELD_OUT + index) for index in range(SCENES)]


@pytest.fixture(scope="module")
def asked(scenes) -> list[tuple[Scene, Question]]:
    rng = np.random.default_rng(0)
    return [(scene, question) for scene in scenes for question in questions(scene, rng, 14)]


def test_a_seed_is_a_scene():
    first, again, other = make_scene(5), make_scene(5), make_scene(6)
    assert first.things == again.things != other.things
    assert first.image.tobytes() == again.image.tobytes() != other.image.tobytes()
    assert (first.owner == again.owner).all()
    assert questions(first, np.random.default_rng(1)) == questions(again, np.random.default_rng(1))
    assert captions(first, np.random.default_rng(1)) == captions(again, np.random.default_rng(1))


def test_images_show_what_the_things_say(scenes):
    """The mean colour of the pixels a shape owns is nearest to the colour it is called by."""
    palette = np.array(list(COLOURS.values()), float)
    for scene in scenes:
        pixels = np.asarray(scene.image, float)
        assert pixels.shape == (SIDE, SIDE, 3)
        for index, thing in enumerate(scene.things):
            mine = scene.owner == index + 1
            left, top, right, bottom = thing.box
            assert mine.any() and mine.sum() == mine[top:bottom, left:right].sum()
            assert min(left, top) >= 0 and max(right, bottom) <= SIDE
            if thing.glyph is None:
                distance = np.abs(palette - pixels[mine].mean(0)).sum(1)
                assert list(COLOURS)[distance.argmin()] == thing.colour
            else:
                assert pixels[mine].min() < 60 and pixels[mine].max() > 200


def test_most_is_ground_and_some_things_are_small_or_touch(scenes):
    patches = np.stack([scene.owner.reshape(24, 7, 24, 7).max((1, 3)) > 0 for scene in scenes])
    assert patches.mean() < 0.2
    radii = [thing.radius for scene in scenes for thing in scene.shapes]
    assert min(radii) == 7 and max(radii) >= 20  # 15 pixels are two or three patches
    gaps = [
        np.hypot(a.x - b.x, a.y - b.y) - a.radius - b.radius
        for scene in scenes
        for a in scene.things
        for b in scene.things
        if a is not b
    ]
    assert sum(gap < 1.5 for gap in gaps) > 20


def matching(scene: Scene, words: str) -> list:
    """Return the things that words like "small red circles" or "sign" mean, read without the code."""
    if "sign" in words:
        return [t for t in scene.things if t.glyph]
    found = [t for t in scene.things if not t.glyph]
    for word in re.findall(r"\w+", words):
        found = [
            t
            for t in found
            if (word not in COLOURS or t.colour == word)
            and (word.rstrip("s") not in SHAPES or t.shape == word.rstrip("s"))
            and (word not in ("small", "medium", "large") or t.size == word)
        ]
    return found


def true_answer(scene: Scene, question: Question) -> str:
    text = question.text
    if question.kind == "existence":
        return "yes" if matching(scene, text) else "no"
    if question.kind == "count":
        return str(len(matching(scene, text)))
    if question.kind == "relation":
        first, second = (matching(scene, part) for part in re.split(r"relative|compared", text))
        assert len(first) == len(second) == 1
        dx, dy = first[0].x - second[0].x, first[0].y - second[0].y
        return ("right" if dx > 0 else "left") if abs(dx) > abs(dy) else ("below" if dy > 0 else "above")
    (thing,) = matching(scene, text)
    if question.kind == "location":
        return CELLS[thing.y // (SIDE // 4) * 4 + thing.x // (SIDE // 4)]
    return {"colour": thing.colour, "shape": thing.shape, "read": thing.glyph}[question.kind]


def test_answers_are_true_and_single(asked):
    for scene, question in asked:
        assert question.answer == true_answer(scene, question), (question, scene.things)


def test_boxes_are_of_the_things_asked_about(asked):
    for scene, question in asked:
        boxes = {thing.box for thing in scene.things}
        assert set(question.boxes) <= boxes
        if question.kind == "relation":
            assert len(question.boxes) == 2
        elif question.kind not in ("existence", "count"):
            assert question.boxes == (matching(scene, question.text)[0].box,)


def test_no_answer_can_be_guessed_from_its_kind(asked):
    """The commonest answer of a kind stays rare; a question's words alone do not give existence away."""
    answers = defaultdict(Counter)
    for _, question in asked:
        answers[question.kind][question.answer] += 1
    assert set(answers) == set(KINDS)
    commonest = {kind: max(count.values()) / count.total() for kind, count in answers.items()}
    limits = {
        "existence": 0.55,
        "colour": 0.27,
        "shape": 0.34,
        "count": 0.36,
        "relation": 0.34,
        "location": 0.16,
        "read": 0.2,
    }
    assert all(commonest[kind] <= limits[kind] for kind in KINDS), commonest
    assert set(answers["read"]) == set(GLYPHS) and set(answers["location"]) == set(CELLS)
    assert min(count.total() for count in answers.values()) > SCENES


def test_kinds_without_a_question_are_passed_over():
    bare = make_scene(3, things=(1, 1), sign=0.0)
    rng = np.random.default_rng(0)
    assert len(bare.things) == 1
    assert ask(bare, "read", rng) is None and ask(bare, "relation", rng) is None
    assert len(questions(bare, rng, 20)) == 20


def test_options_of_a_scene():
    for seed in range(20):
        scene = make_scene(seed, things=(3, 3), sign=1.0, clutter=0.0)
        assert len(scene.shapes) <= 3 and sum(t.glyph is not None for t in scene.things) <= 1
        ground = np.asarray(scene.image)[scene.owner == 0]
        commonest = Counter(map(tuple, ground.tolist())).most_common(1)[0][1]
        assert commonest > 0.9 * len(ground)


def test_captions_name_what_is_there(scenes):
    rng = np.random.default_rng(0)
    for scene in scenes[:50]:
        for caption in captions(scene, rng, 2):
            named = re.findall(r"(\w+) (circle|square|triangle|star)", caption)
            assert set(named) <= {(t.colour, t.shape) for t in scene.shapes}
            assert len(named) + ("sign" in caption) == min(5, len(scene.things))

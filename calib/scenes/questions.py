"""Questions with true answers about synthetic scenes.

The checkpoint `shapes` is trained and measured on them::

    scene = make_scene(HELD_OUT + 7)                             # an image and the things in it, by seed
    for question in questions(scene, np.random.default_rng(7)):  # kind, text, answer, boxes
        print(question.text, question.answer)

The answers are true by construction. Training uses seeds below `HELD_OUT`; accuracy and calibration use seeds
from it on.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypeVar

import numpy as np

from foveate.calib.scenes.draw import COLOURS, GLYPHS, SHAPES, SIDE, Scene, Thing, make_scene

__all__ = [
    "CELLS",
    "COLOURS",
    "GLYPHS",
    "HELD_OUT",
    "KINDS",
    "SHAPES",
    "SIDE",
    "Question",
    "Scene",
    "Thing",
    "ask",
    "captions",
    "make_scene",
    "questions",
]

HELD_OUT = 1_000_000_000  # seeds from here on are never trained on
KINDS = ("existence", "colour", "shape", "count", "relation", "location", "read")
CELLS = tuple(column + row for row in "1234" for column in "abcd")  # reading order: a1 b1 c1 d1 a2 ...
T = TypeVar("T")


class Question(NamedTuple):
    """A question as a user would type it, its only right answer, and the boxes of the things it needs."""

    kind: str
    text: str
    answer: str
    boxes: tuple[tuple[int, int, int, int], ...]


def questions(scene: Scene, rng: np.random.Generator, count: int = 7) -> list[Question]:
    """Return `count` questions, whose kinds take turns in random order.

    Kinds without a question about this scene are skipped.
    """
    asked: list[Question] = []
    while len(asked) < count:
        for kind in rng.permutation(KINDS):
            question = ask(scene, str(kind), rng)
            if question is not None and len(asked) < count:
                asked.append(question)
    return asked


def ask(scene: Scene, kind: str, rng: np.random.Generator) -> Question | None:
    """Return a question of this kind about the scene, or None if there is none with a single right answer."""
    return _ASKERS[kind](scene, rng)


def captions(scene: Scene, rng: np.random.Generator, count: int = 1) -> list[str]:
    """Return sentences that name the things of a scene, in random order, at most five things."""
    sentences = []
    for _ in range(count):
        chosen = [scene.things[i] for i in rng.permutation(len(scene.things))[:5]]
        names = [_name(thing, rng) for thing in chosen]
        text = " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
        sentences.append(_pick(rng, ("{}", "a picture of {}", "there is {}")).format(text))
    return sentences


def _pick(rng: np.random.Generator, options: Sequence[T]) -> T:
    return options[int(rng.integers(len(options)))]


def _name(thing: Thing, rng: np.random.Generator) -> str:
    if thing.glyph is not None:
        return f"a sign with {thing.glyph}"
    size = f"{thing.size} " if thing.size != "medium" and rng.random() < 0.3 else ""
    return f"a {size}{thing.colour} {thing.shape}"


def _only(scene: Scene, thing: Thing, rng: np.random.Generator) -> str | None:
    """Return words that identify one thing ("red circle", "small red circle", "sign"), or None."""
    if thing.glyph is not None:
        return "sign"
    twins = [t for t in scene.shapes if (t.colour, t.shape) == (thing.colour, thing.shape)]
    sized = sum(t.size == thing.size for t in twins) == 1 and thing.size != "medium"
    if sized and (len(twins) > 1 or rng.random() < 0.2):
        return f"{thing.size} {thing.colour} {thing.shape}"
    return f"{thing.colour} {thing.shape}" if len(twins) == 1 else None


def _existence(scene: Scene, rng: np.random.Generator) -> Question | None:
    """Ask whether a thing is there: yes and no in equal parts.

    Half of the no's name a colour and a shape that are both there, but not together.
    """
    shapes = scene.shapes
    if not shapes:
        return None
    there = {(t.colour, t.shape) for t in shapes}
    if rng.random() < 0.5:
        colour, shape = _pick(rng, sorted(there))
    else:
        crossed = sorted({(a, b) for a, _ in there for _, b in there} - there)
        others = sorted({(a, b) for a in COLOURS for b in SHAPES} - there)
        colour, shape = _pick(rng, crossed if crossed and rng.random() < 0.5 else others)
    boxes = tuple(t.box for t in shapes if (t.colour, t.shape) == (colour, shape))
    article = "an" if colour == "orange" else "a"
    text = _pick(rng, ("Is there {}?", "Is there {} in the picture?", "Do you see {}?"))
    return Question("existence", text.format(f"{article} {colour} {shape}"), "yes" if boxes else "no", boxes)


def _colour(scene: Scene, rng: np.random.Generator) -> Question | None:
    alone = [t for t in scene.shapes if sum(o.shape == t.shape for o in scene.shapes) == 1]
    if not alone:
        return None
    thing = _pick(rng, alone)
    text = _pick(rng, ("What color is the {}?", "What colour is the {}?", "What is the color of the {}?"))
    return Question("colour", text.format(thing.shape), thing.colour, (thing.box,))


def _shape(scene: Scene, rng: np.random.Generator) -> Question | None:
    alone = [t for t in scene.shapes if sum(o.colour == t.colour for o in scene.shapes) == 1]
    if not alone:
        return None
    thing = _pick(rng, alone)
    text = _pick(rng, ("What shape is the {} object?", "What is the shape of the {} object?"))
    return Question("shape", text.format(thing.colour), thing.shape, (thing.box,))


def _count(scene: Scene, rng: np.random.Generator) -> Question | None:
    """Ask for a number.

    Every number that is the answer to some question about this scene is equally likely.
    """
    counted: dict[int, list[tuple[str, list[Thing]]]] = {}
    wanted = [(f"{s}s", [t for t in scene.shapes if t.shape == s]) for s in SHAPES]
    wanted += [(f"{c} shapes", [t for t in scene.shapes if t.colour == c]) for c in COLOURS]
    wanted += [("shapes", scene.shapes)]
    for words, found in wanted:
        counted.setdefault(len(found), []).append((words, found))
    number = _pick(rng, sorted(counted))
    words, found = _pick(rng, counted[number])
    text = _pick(rng, ("How many {} are there?", "How many {} do you see?"))
    return Question("count", text.format(words), str(number), tuple(t.box for t in found))


def _relation(scene: Scene, rng: np.random.Generator) -> Question | None:
    """Ask on which side of `b` is `a`, for pairs that are clearly beside or clearly above one another."""
    for _ in range(8):
        if len(scene.things) < 2:
            return None
        a, b = (scene.things[i] for i in rng.permutation(len(scene.things))[:2])
        names, dx, dy = (_only(scene, a, rng), _only(scene, b, rng)), a.x - b.x, a.y - b.y
        if None in names or max(abs(dx), abs(dy)) < 1.5 * min(abs(dx), abs(dy)) + 8:
            continue
        sides = (dx < 0, "left", "right") if abs(dx) > abs(dy) else (dy < 0, "above", "below")
        text = _pick(rng, ("Where is the {} relative to the {}?", "Where is the {} compared to the {}?"))
        return Question("relation", text.format(*names), sides[1] if sides[0] else sides[2], (a.box, b.box))
    return None


def _location(scene: Scene, rng: np.random.Generator) -> Question | None:
    """Ask for the cell of a thing whose centre is at least 4 pixels inside the cell."""
    step = SIDE // 4
    clear = [t for t in scene.things if all(4 <= v % step < step - 4 for v in (t.x, t.y))]
    named = [(name, t) for t in clear if (name := _only(scene, t, rng))]
    if not named:
        return None
    name, thing = _pick(rng, named)
    text = _pick(rng, ("Where is the {}?", "In which cell is the {}?"))
    return Question("location", text.format(name), thing.cell, (thing.box,))


def _read(scene: Scene, rng: np.random.Generator) -> Question | None:
    signs = [(t.glyph, t.box) for t in scene.things if t.glyph is not None]
    if not signs:
        return None
    glyph, box = signs[0]
    what = "digit" if glyph.isdigit() else "letter"
    text = _pick(rng, ("What {} is on the sign?", "Which {} is on the sign?"))
    return Question("read", text.format(what), glyph, (box,))


_ASKERS = {
    "existence": _existence,
    "colour": _colour,
    "shape": _shape,
    "count": _count,
    "relation": _relation,
    "location": _location,
    "read": _read,
}

"""Synthetic scenes: an image and a list of the things in it, both made from a seed.

Scenes have coloured shapes and at most one lettered sign on plain or cluttered grounds. Most of an image is
ground, some things are two or three patches wide, and some touch. `questions.py` asks questions about them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

__all__ = ["COLOURS", "GLYPHS", "SHAPES", "SIDE", "Scene", "Thing", "make_scene"]

SIDE = 168  # pixels; 24 x 24 patches of 7
COLOURS = {
    "red": (214, 40, 40),
    "green": (40, 168, 64),
    "blue": (48, 84, 222),
    "yellow": (236, 212, 44),
    "purple": (150, 60, 184),
    "orange": (242, 136, 28),
}
SHAPES = ("circle", "square", "triangle", "star")
# 5 x 7 bitmaps, a row per hexadecimal pair: the same pixels whatever fonts a machine has.
GLYPHS = {
    "0": "0E11131519110E", "1": "040C040404040E", "2": "0E11010204081F", "3": "1F02040201110E",
    "4": "02060A121F0202", "5": "1F101E0101110E", "6": "0608101E11110E", "7": "1F010204080808",
    "8": "0E11110E11110E", "9": "0E11110F01020C", "A": "0E11111F111111", "C": "0E11101010110E",
    "E": "1F10101E10101F", "F": "1F10101E101010", "H": "1111111F111111", "K": "11121418141211",
    "L": "1010101010101F", "P": "1E11111E101010", "T": "1F040404040404", "X": "11110A040A1111",
}  # fmt: skip


@dataclass(frozen=True)
class Thing:
    """A shape or a sign. `radius` and the centre (`x`, `y`) are in pixels.

    A sign has a `glyph` and the colour white.
    """

    shape: str
    colour: str
    x: int
    y: int
    radius: int
    glyph: str | None = None

    @property
    def size(self) -> str:
        """The word for its radius: small, medium or large."""
        return "small" if self.radius <= 9 else "large" if self.radius >= 15 else "medium"

    @property
    def box(self) -> tuple[int, int, int, int]:
        """Left, top, right, bottom in pixels; right and bottom are outside."""
        return (
            self.x - self.radius,
            self.y - self.radius,
            self.x + self.radius + 1,
            self.y + self.radius + 1,
        )

    @property
    def cell(self) -> str:
        """The name of the cell, of 4 x 4 cells, that holds the centre."""
        return "abcd"[self.x * 4 // SIDE] + "1234"[self.y * 4 // SIDE]


@dataclass(frozen=True)
class Scene:
    """An `image` (RGB, SIDE x SIDE) and the `things` in it.

    `owner` [SIDE, SIDE] uint8 is 1 + the index of the thing at a pixel, or 0 on the ground.
    """

    image: Image.Image
    things: tuple[Thing, ...]
    owner: np.ndarray

    @property
    def shapes(self) -> list[Thing]:
        """The things without the sign."""
        return [thing for thing in self.things if thing.glyph is None]


def make_scene(
    seed: int, *, things: tuple[int, int] = (1, 6), sign: float = 0.5, clutter: float = 0.7
) -> Scene:
    """Make the scene of a seed.

    `things` are the smallest and largest number of shapes. `sign` and `clutter` are the chances of a sign and
    of a cluttered ground.
    """
    rng = np.random.default_rng(seed)
    pixels = _ground(rng, clutter)
    placed = _place(rng, int(rng.integers(things[0], things[1] + 1)), rng.random() < sign)
    owner = np.zeros((SIDE, SIDE), np.uint8)
    for index, thing in enumerate(placed):
        _paint(pixels, owner, thing, index + 1, rng)
    return Scene(Image.fromarray(pixels.round().clip(0, 255).astype(np.uint8)), tuple(placed), owner)


def _ground(rng: np.random.Generator, clutter: float) -> np.ndarray:
    """Make a dull ground, [SIDE, SIDE, 3] float.

    It is plain, or has any of gradient, stripes, grain, lines and grey specks.
    """
    base = rng.uniform(15, 120) + rng.uniform(-12, 12, 3)
    pixels = np.empty((SIDE, SIDE, 3), np.float32)
    pixels[:] = base
    if rng.random() >= clutter:
        return pixels
    gradient, stripes, grain, lines, specks = rng.random(5) < 0.45
    along = np.arange(SIDE, dtype=np.float32)
    angle = rng.uniform(0, 2 * math.pi)
    ramp = math.cos(angle) * along[None] + math.sin(angle) * along[:, None]
    if gradient:
        pixels += (ramp * rng.uniform(0.1, 0.35))[..., None] - 20
    if stripes:
        pixels += np.where(np.sin(ramp * 2 * math.pi / rng.uniform(6, 40)) > 0, rng.uniform(6, 24), 0)[
            ..., None
        ]
    if grain:
        scale = int(rng.choice((1, 2, 7)))
        noise = rng.normal(0, rng.uniform(4, 14), (SIDE // scale, SIDE // scale)).astype(np.float32)
        pixels += noise.repeat(scale, 0).repeat(scale, 1)[..., None]
    if not (lines or specks):
        return pixels
    image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    for _ in range(rng.integers(2, 9) if lines else 0):
        draw.line(rng.integers(0, SIDE, 4).tolist(), fill=_grey(rng), width=int(rng.integers(1, 3)))
    for _ in range(rng.integers(4, 24) if specks else 0):
        x, y, radius = (int(v) for v in (*rng.integers(0, SIDE, 2), rng.integers(1, 4)))
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=_grey(rng))
    return np.asarray(image).astype(np.float32)


def _grey(rng: np.random.Generator) -> tuple[int, int, int]:
    return (int(rng.integers(40, 190)),) * 3


def _place(rng: np.random.Generator, count: int, sign: bool) -> list[Thing]:
    """Place things without overlap.

    A theme, which is a shape or colour that most things share, makes counts above one common.
    """
    colours, placed = list(COLOURS), list[Thing]()
    theme_shape, theme_colour = rng.integers(len(SHAPES)), rng.integers(len(colours))
    themed = rng.choice(3, p=(0.5, 0.3, 0.2))  # 1: the shape is shared, 2: the colour
    for turn in range(count + sign):
        shape = SHAPES[theme_shape if themed == 1 and rng.random() < 0.7 else rng.integers(len(SHAPES))]
        colour = colours[theme_colour if themed == 2 and rng.random() < 0.7 else rng.integers(len(colours))]
        low, high = ((7, 10), (10, 15), (15, 23))[rng.choice(3, p=(0.35, 0.4, 0.25))]
        radius, glyph = int(rng.integers(low, high)), None
        if turn == count:
            shape, colour, radius, glyph = (
                "sign",
                "white",
                int(rng.choice((13, 17))),
                str(rng.choice(list(GLYPHS))),
            )
        spot = _spot(rng, radius, placed)
        if spot is not None:
            placed.append(Thing(shape, colour, *spot, radius, glyph))
    return placed


def _spot(rng: np.random.Generator, radius: int, placed: Sequence[Thing]) -> tuple[int, int] | None:
    """Find a free centre for a thing of this radius. One in four touches a thing that is already there."""
    touching = bool(placed) and rng.random() < 0.25
    for _ in range(40):
        if touching:
            other, angle = placed[int(rng.integers(len(placed)))], rng.uniform(0, 2 * math.pi)
            reach = other.radius + radius
            x, y = round(other.x + reach * math.cos(angle)), round(other.y + reach * math.sin(angle))
        else:
            x, y = (int(v) for v in rng.integers(radius + 1, SIDE - radius - 1, 2))
        gap = -2 if touching else 3
        inside = radius < min(x, y) and max(x, y) < SIDE - radius - 1
        if inside and all(math.hypot(x - o.x, y - o.y) >= radius + o.radius + gap for o in placed):
            return x, y
    return None


def _paint(pixels: np.ndarray, owner: np.ndarray, thing: Thing, label: int, rng: np.random.Generator) -> None:
    """Blend a thing into `pixels` with smooth edges, and mark what it covers in `owner`."""
    left, top, right, bottom = thing.box
    alpha = _silhouette(thing)[..., None]
    colour = np.asarray(COLOURS.get(thing.colour, (235, 235, 235)), np.float32) + rng.uniform(-14, 14, 3)
    ink = np.broadcast_to(colour, (*alpha.shape[:2], 3)).copy()
    if thing.glyph is not None:
        ink[_strokes(thing.glyph, thing.radius)] = rng.uniform(0, 45)
    region = pixels[top:bottom, left:right]
    region += alpha * (ink - region)
    owner[top:bottom, left:right][alpha[..., 0] > 0.5] = label


def _silhouette(thing: Thing) -> np.ndarray:
    """Return the share of each pixel of its box that a thing covers, [side, side] in 0..1.

    It is drawn at four times the size.
    """
    side, r = 2 * thing.radius + 1, 4.0 * thing.radius
    c = 2.0 * side - 0.5
    image = Image.new("L", (4 * side, 4 * side))
    draw = ImageDraw.Draw(image)
    if thing.shape == "circle":
        draw.ellipse((c - r, c - r, c + r, c + r), fill=255)
    elif thing.shape == "square":
        draw.rectangle((c - 0.84 * r, c - 0.84 * r, c + 0.84 * r, c + 0.84 * r), fill=255)
    elif thing.shape == "triangle":
        draw.polygon([(c, c - r), (c - r, c + 0.8 * r), (c + r, c + 0.8 * r)], fill=255)
    elif thing.shape == "star":
        arms = [(r if k % 2 == 0 else 0.42 * r, k * math.pi / 5) for k in range(10)]
        draw.polygon([(c + a * math.sin(t), c - a * math.cos(t)) for a, t in arms], fill=255)
    else:
        draw.rectangle((c - 0.8 * r, c - r, c + 0.8 * r, c + r), fill=255)
    return np.asarray(image.resize((side, side), Image.Resampling.BOX), np.float32) / 255


def _strokes(glyph: str, radius: int) -> np.ndarray:
    """Return the mask of a sign's glyph, [side, side] bool. A dot of its bitmap is 3 or 4 pixels wide."""
    side, dot = 2 * radius + 1, 4 if radius > 15 else 3
    rows = bytes.fromhex(GLYPHS[glyph])
    bits = (
        np.array([[row >> (4 - k) & 1 for k in range(5)] for row in rows], bool).repeat(dot, 0).repeat(dot, 1)
    )
    ink = np.zeros((side, side), bool)
    top, left = (side - bits.shape[0]) // 2, (side - bits.shape[1]) // 2
    ink[top : top + bits.shape[0], left : left + bits.shape[1]] = bits
    return ink

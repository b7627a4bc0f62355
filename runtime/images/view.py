"""The image as the model sees it: size, visible part, and the place of each visual token on the original."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from foveate.runtime.images.processor import patch_boxes, resized_size, seen_box
from foveate.runtime.images.token_layout import Layout, Size, fit_canvas, padded

__all__ = ["Box", "View", "view_of"]

Box = tuple[float, float, float, float]
"""Left, top, right, bottom, in pixels; the right and the bottom edge are exclusive."""


@dataclass(frozen=True, eq=False)
class View:
    """One image, or one video, as the model sees it.

    ``size``: width and height of the original after its EXIF rotation. ``resized``: width and height at which
    the model sees it; coordinates in the answers of Qwen2.5-VL count these pixels. ``box``: the visible part
    on the original, in pixels. It reaches over the edges if the image was padded, and leaves out what was
    cropped. ``grid``: rows and columns of the visual tokens. LLaVA-NeXT also sees the whole image squeezed
    into a square; its ``grid`` is that of the tiles. ``boxes`` float64 [T, 4]: a ``Box`` on the original for
    each visual token, NaN for a newline.
    """

    size: Size
    resized: Size
    box: Box
    grid: tuple[int, int]
    boxes: np.ndarray

    @property
    def scale(self) -> tuple[float, float]:
        """Return pixels of the original per pixel of ``resized``, across and down."""
        left, top, right, bottom = self.box
        return (right - left) / self.resized[0], (bottom - top) / self.resized[1]

    def to_original(self, points: Sequence[float]) -> list[float]:
        """Return coordinates x, y, x, y, ... (a point, a box, a polygon) in pixels of the original.

        ``points`` are in pixels of ``resized``. Raises ValueError for an odd number of coordinates.
        """
        if len(points) % 2:
            raise ValueError(f"expected pairs of x and y, got {len(points)} numbers")
        return [self.box[i % 2] + value * self.scale[i % 2] for i, value in enumerate(points)]

    def kept_boxes(self, kept: np.ndarray) -> np.ndarray:
        """Return float64 [R, 4]: boxes of the tokens ``kept`` int64 [R].

        NaN for newlines and rows without a place (-1).
        """
        return np.where(kept[:, None] < 0, np.nan, self.boxes[kept])

    def to_json(self) -> dict[str, Any]:
        return {
            "size": list(self.size),
            "resized": list(self.resized),
            "scale": [round(each, 6) for each in self.scale],
            "box": [round(each, 2) for each in self.box],
            "grid": list(self.grid),
        }


def view_of(size: Size, settings: dict[str, Any], plan: Layout) -> View:
    """Return the view of an image of ``size``.

    ``settings`` are a bundle's (``images.processor``), ``plan`` its layout.
    """
    if settings["kind"] == "anyres":
        return _tiled(size, settings, plan)
    if settings["kind"] == "windows":
        rows, columns = plan.finest
        cell = settings["patch"] * settings["merge"]
        resized, box = (columns * cell, rows * cell), _whole(size)
    else:
        resized, box = resized_size(size, settings), seen_box(size, settings)
    return View(size, resized, box, plan.finest, patch_boxes(size, settings, plan.finest)[plan.patch])


def _tiled(size: Size, settings: dict[str, Any], plan: Layout) -> View:
    """Return the view of LLaVA-NeXT. The first tokens show the whole image in one tile.

    A strip that is too thin for the tiles has no other tokens.
    """
    grid = int(plan.rows[0]), int(plan.columns[0])
    boxes = patch_boxes(size, {"kind": "windows"}, grid)
    if plan.total == len(boxes):
        return View(size, (settings["tile"], settings["tile"]), _whole(size), grid, boxes)
    lines = plan.patch[len(boxes) :]
    found = np.where(lines[:, None] < 0, np.nan, patch_boxes(size, settings, plan.finest)[lines])
    resized, box = _canvas(size, settings)
    return View(size, resized, box, plan.finest, np.concatenate([boxes, found]))


def _whole(size: Size) -> Box:
    return 0.0, 0.0, float(size[0]), float(size[1])


def _canvas(size: Size, settings: dict[str, Any]) -> tuple[Size, Box]:
    """Return the size of LLaVA-NeXT's canvas of tiles, which holds the image in its middle, and its box."""
    height, width = fit_canvas(size, settings["pinpoints"])
    fitted, (left, top) = padded(size, (height, width))
    across, down = size[0] / fitted[0], size[1] / fitted[1]
    return (width, height), (-left * across, -top * down, (width - left) * across, (height - top) * down)

"""The image as the model sees it: size, visible part, and the place of each visual token on the original."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from foveate.runtime.images.token_layout import Size

__all__ = ["Box", "View", "grid_boxes", "whole_box"]

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
        """Return the view without the boxes of its tokens, as ``--json`` prints it."""
        return {
            "size": list(self.size),
            "resized": list(self.resized),
            "scale": [round(each, 6) for each in self.scale],
            "box": [round(each, 2) for each in self.box],
            "grid": list(self.grid),
        }


def whole_box(size: Size) -> Box:
    """Return the box of all of an image of ``size``."""
    return 0.0, 0.0, float(size[0]), float(size[1])


def grid_boxes(box: Box, grid: tuple[int, int]) -> np.ndarray:
    """Return the boxes of a ``grid`` (rows, columns) of equal cells in ``box``: float64 [rows * columns, 4].

    They are in row-major order. Neighbours share their edges exactly.
    """
    rows, columns = grid
    left, top, right, bottom = box
    xs, ys = np.linspace(left, right, columns + 1), np.linspace(top, bottom, rows + 1)
    row, column = np.divmod(np.arange(rows * columns), columns)
    return np.stack([xs[column], ys[row], xs[column + 1], ys[row + 1]], axis=1)

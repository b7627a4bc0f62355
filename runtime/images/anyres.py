"""LLaVA-NeXT's images ("AnyRes"): the whole image squeezed into a tile, then again, larger, cut into tiles.

Tokens of the tiles are read line by line across tiles, without those of the padding, and with a newline
after each line. The settings in bundle.json::

    {"kind": "anyres",
     "tile": 336,                     # side of a tile in pixels
     "pinpoints": [[336, 672], ...],  # [height, width] of canvases of tiles; the image is centred in one
     "resample": 3, "rescale": 1 / 255, "mean": [r, g, b], "std": [r, g, b]}
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from foveate.runtime.images.pixels import Normalization
from foveate.runtime.images.token_layout import Layout, Size
from foveate.runtime.images.view import Box, View, grid_boxes, whole_box

__all__ = ["AnyresProcessor"]


@dataclass(frozen=True)
class AnyresProcessor:
    """Image processor of kind ``anyres``. ``pinpoints`` are (height, width) of canvases of tiles."""

    tile: int
    pinpoints: Sequence[Sequence[int]]
    normalization: Normalization

    varies = True
    video = None

    @classmethod
    def from_json(cls, settings: Mapping[str, Any]) -> AnyresProcessor:
        """Return the processor with the settings of bundle.json."""
        return cls(settings["tile"], settings["pinpoints"], Normalization.from_json(settings))

    def preprocess(self, image: Image.Image) -> np.ndarray:
        """Return ``pixel_values``, float32 [tiles, 3, H, W]."""
        return np.concatenate([self.normalization.pixel_values(tile) for tile in self._tiles(image)])

    def token_layout(self, size: Size, grid: tuple[int, int]) -> Layout:
        """Return the layout of an image of ``size``. ``grid`` is the number of rows and columns of a tile."""
        rows, columns = grid
        height, width = self._canvas(size)
        down, across = height // self.tile, width // self.tile
        y, x = (np.arange(n) for n in (down * rows, across * columns))
        # number of the tile; 0 is the tile of the whole image
        number = (y // rows)[:, None] * across + x // columns + 1
        canvas = number * rows * columns + (y % rows)[:, None] * columns + x % columns
        top, left = _margins(size, canvas.shape)
        seen = canvas[top : len(y) - top, left : len(x) - left]
        lines = np.pad(seen, ((0, 0), (0, 1)), constant_values=-1)
        first = rows * columns
        patch = np.where(lines < 0, -1, np.cumsum(lines >= 0).reshape(lines.shape) - 1)
        places = first + np.arange(lines.size).reshape(lines.shape)[:, :-1]
        tile = number[top : len(y) - top, left : len(x) - left]
        pieces = [places[_block(tile == n)] for n in range(1, down * across + 1) if (tile == n).any()]

        def told(whole: int, line: int) -> np.ndarray:
            return np.repeat(np.array([whole, line]), [first, lines.size])

        return Layout(
            order=np.concatenate([np.arange(first), lines.ravel()]),
            pieces=(np.arange(first).reshape(grid), *pieces),
            tiles=1 + down * across,
            patch=np.concatenate([np.arange(first), patch.ravel()]),
            rows=told(rows, seen.shape[0]),
            columns=told(columns, seen.shape[1]),
        )

    def patch_boxes(self, size: Size, grid: tuple[int, int]) -> np.ndarray:
        """Return the box of each token of the tiles on an image of ``size``: float64 [rows * columns, 4].

        ``grid`` is the one whose tokens are read line by line.
        """
        canvas = self._canvas(size)
        fitted, corner = _padded(size, canvas)
        # padding is left out on two opposite sides at most
        patch = min(canvas[1] / grid[1], canvas[0] / grid[0])
        box = []
        for end in (-1, 1):
            for axis in (0, 1):  # across, down; the canvas has these two in the opposite order
                edge = canvas[1 - axis] / 2 + end * grid[1 - axis] * patch / 2
                box.append((edge - corner[axis]) * size[axis] / fitted[axis])
        return grid_boxes((box[0], box[1], box[2], box[3]), grid)

    def view(self, size: Size, layout: Layout) -> View:
        """Return how the model sees an image of ``size``. The first tokens show all of it in one tile.

        A strip that is too thin for the tiles has no other tokens.
        """
        grid = int(layout.rows[0]), int(layout.columns[0])
        boxes = grid_boxes(whole_box(size), grid)
        if layout.total == len(boxes):
            return View(size, (self.tile, self.tile), whole_box(size), grid, boxes)
        lines = layout.patch[len(boxes) :]
        found = np.where(lines[:, None] < 0, np.nan, self.patch_boxes(size, layout.finest)[lines])
        height, width = self._canvas(size)
        return View(
            size, (width, height), self._canvas_box(size), layout.finest, np.concatenate([boxes, found])
        )

    def reference_size(self) -> Size:
        """Return the size of a small image with some padding."""
        height, width = min(self.pinpoints, key=lambda point: point[0] * point[1])
        return width, height * 4 // 5

    def summary(self, tokens: int, grid: tuple[int, int]) -> str:
        """Return the number of visual tokens in words, for ``foveate inspect``."""
        return f"up to {tokens} visual tokens in tiles of {grid[0]} x {grid[1]}, and newlines"

    def _tiles(self, image: Image.Image) -> list[Image.Image]:
        side, resample = self.tile, self.normalization.resample
        height, width = self._canvas(image.size)
        fitted, corner = _padded(image.size, (height, width))
        canvas = Image.new("RGB", (width, height))
        canvas.paste(image.resize(fitted, resample), corner)
        corners = [(left, top) for top in range(0, height, side) for left in range(0, width, side)]
        pieces = [canvas.crop((left, top, left + side, top + side)) for left, top in corners]
        return [image.resize((side, side), resample), *pieces]

    def _canvas(self, size: Size) -> tuple[int, int]:
        """Return the entry of ``pinpoints`` (height, width) that shows most of the image's pixels.

        Among equal ones it is the smallest.
        """
        width, height = size

        def rank(point: Sequence[int]) -> tuple[int, int]:
            scale = min(point[1] / width, point[0] / height)
            shown = min(int(width * scale) * int(height * scale), width * height)
            return shown, shown - point[0] * point[1]

        best = max(self.pinpoints, key=rank)
        return best[0], best[1]

    def _canvas_box(self, size: Size) -> Box:
        """Return the box of the canvas, which holds the image in its middle, in pixels of the image."""
        height, width = self._canvas(size)
        fitted, (left, top) = _padded(size, (height, width))
        across, down = size[0] / fitted[0], size[1] / fitted[1]
        return -left * across, -top * down, (width - left) * across, (height - top) * down


def _padded(size: Size, canvas: tuple[int, int]) -> tuple[Size, Size]:
    """Return how an image of ``size`` lies in the middle of ``canvas`` (height, width).

    These are its (width, height) there, and its (left, top).
    """
    width, height = size
    across, down = canvas[1] / width, canvas[0] / height
    if across < down:
        fitted = canvas[1], min(int(np.ceil(height * across)), canvas[0])
    else:
        fitted = min(int(np.ceil(width * down)), canvas[1]), canvas[0]
    return fitted, ((canvas[1] - fitted[0]) // 2, (canvas[0] - fitted[1]) // 2)


def _margins(size: Size, canvas: tuple[int, ...]) -> tuple[int, int]:
    """Return the lines of tokens above (and below) and columns left (and right) that show only padding.

    Uses sizes in tokens as transformers' ``unpad_image`` does, so tokens that are partly padding stay.
    """
    width, height = size
    rows, columns = canvas
    if width / height > columns / rows:
        return (rows - int(round(height * (columns / width), 7))) // 2, 0
    return 0, (columns - int(round(width * (rows / height), 7))) // 2


def _block(mask: np.ndarray) -> tuple[slice, slice]:
    """Return the rectangle that is marked in ``mask``."""
    spans = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    down, across = (slice(span[0], span[-1] + 1) for span in spans)
    return down, across

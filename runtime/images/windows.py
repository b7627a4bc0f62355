"""Qwen2.5-VL's images: of any size, in patches. The vision encoder attends in windows.

A visual token is 2 x 2 patches. Tokens are ordered by windows of 4 x 4 tokens, fewer at the image's edges.
The settings in bundle.json::

    {"kind": "windows",
     "patch": 14, "merge": 2,         # side of a patch in pixels; side of a visual token in patches
     "frames": 2,                     # frames per patch; an image is repeated that often
     "window": 4,                     # side of a window in visual tokens
     "min_pixels": 3136, "max_pixels": 12845056,
     "resample": 3, "rescale": 1 / 255, "mean": [r, g, b], "std": [r, g, b],
     "video": {"fps": 2, "min_frames": 4, "max_frames": 768,        # frames that are shown
               "min_pixels": 100352, "max_pixels": 602112,          # limits for one frame
               "total_pixels": 11560550,                            # limit for all time steps together
               "tokens_per_second": 2}}                             # advance of position ids with time
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from PIL import Image

from foveate.engines.errors import UserError
from foveate.runtime.images.pixels import Normalization
from foveate.runtime.images.token_layout import Layout, Size
from foveate.runtime.images.view import View, grid_boxes, whole_box

__all__ = ["WindowsProcessor", "WindowsVideo"]


@dataclass(frozen=True)
class WindowsProcessor:
    """Image processor of kind ``windows``. ``video`` is None if the model takes no videos."""

    patch: int
    merge: int
    frames: int
    window: int
    min_pixels: int
    max_pixels: int
    normalization: Normalization
    video: WindowsVideo | None = None

    varies = True

    @classmethod
    def from_json(cls, settings: Mapping[str, Any]) -> WindowsProcessor:
        """Return the processor with the settings of bundle.json."""
        one = cls(
            patch=settings["patch"],
            merge=settings["merge"],
            frames=settings["frames"],
            window=settings["window"],
            min_pixels=settings["min_pixels"],
            max_pixels=settings["max_pixels"],
            normalization=Normalization.from_json(settings),
        )
        if "video" not in settings:
            return one
        limits = settings["video"]
        numbers = (limits[name] for name in ("min_pixels", "max_pixels", "total_pixels", "tokens_per_second"))
        return replace(one, video=WindowsVideo(one, *numbers))

    @property
    def cell(self) -> int:
        """Return the side of a visual token in pixels."""
        return self.patch * self.merge

    def preprocess(self, image: Image.Image) -> np.ndarray:
        """Return ``pixel_values``, float32 [tokens, patches per token, numbers per patch]."""
        return self.patches([image] * self.frames)

    def patches(self, frames: Sequence[Image.Image]) -> np.ndarray:
        """Return float32 [tokens, merge^2, 3 * frames * patch^2] in the order of ``window_order``.

        All frames have one size.
        """
        size = self._fitted(frames[0].size)
        patch, merge = self.patch, self.merge
        grid = size[1] // self.cell, size[0] // self.cell
        done: dict[int, np.ndarray] = {}  # by object: an image is repeated as its own next frame
        for frame in frames:
            if id(frame) not in done:
                resized = frame.resize(size, self.normalization.resample)
                done[id(frame)] = self.normalization.pixel_values(resized)[0]
        pixels = np.stack([done[id(frame)] for frame in frames])  # [F,3,H,W]
        pixels = pixels.reshape(len(frames), 3, grid[0], merge, patch, grid[1], merge, patch)
        rows = pixels.transpose(2, 5, 3, 6, 1, 0, 4, 7).reshape(grid[0] * grid[1], merge**2, -1)
        return rows[_window_order(grid, self.window)[0]]

    def token_layout(self, size: Size, grid: tuple[int, int] | None = None) -> Layout:
        """Return the layout of an image of ``size``. There are no tiles, so ``grid`` is not used."""
        width, height = self._fitted(size)
        rows, columns = height // self.cell, width // self.cell
        raster, window = _window_order((rows, columns), self.window)
        first = np.flatnonzero(np.diff(window, prepend=-1))  # first token of each window
        inside = np.arange(len(raster)) - first[window]
        slots = np.full((len(first), self.window**2), -1)
        slots[window, inside] = np.arange(len(raster))
        place = np.stack(np.divmod(raster, columns), axis=1)
        index = np.arange(rows * columns)
        return Layout(
            order=np.argsort(raster),
            pieces=(index.reshape(rows, columns),),
            tiles=1,
            patch=index,
            rows=np.full_like(index, rows),
            columns=np.full_like(index, columns),
            feeds={"place": place, "slots": slots, "back": window * slots.shape[1] + inside},
            positions=np.stack([np.zeros_like(index), *np.divmod(index, columns)]),
            span=max(rows, columns),
        )

    def patch_boxes(self, size: Size, grid: tuple[int, int]) -> np.ndarray:
        """Return the box of each visual token on an image of ``size``: float64 [rows * columns, 4]."""
        return grid_boxes(whole_box(size), grid)

    def view(self, size: Size, layout: Layout) -> View:
        """Return how the model sees an image, or the frames of a video, of ``size``."""
        rows, columns = layout.finest
        boxes = self.patch_boxes(size, layout.finest)[layout.patch]
        return View(size, (columns * self.cell, rows * self.cell), whole_box(size), layout.finest, boxes)

    def reference_size(self) -> Size:
        """Return the size of a small image of which some windows are full and others are not."""
        side = self.cell * self.window
        return side * 3 // 2, side

    def summary(self, tokens: int, grid: tuple[int, int]) -> str:
        """Return the number of visual tokens in words, for ``foveate inspect``."""
        return f"up to {tokens} visual tokens, images of more than {self.max_pixels} pixels are scaled down"

    def _fitted(self, size: Size) -> Size:
        """Return width and height as close to ``size`` as the limits on their product allow.

        Both are multiples of a visual token's side. Raises UserError for a strip more than 200 times as long
        as wide, and for one that exceeds the limit even at one token's width.
        """
        if max(size) > 200 * min(size):
            raise UserError(
                f"the image is too narrow | got {size[0]} x {size[1]} pixels, "
                "expected a side at most 200 times the other | crop it"
            )
        cell, area = self.cell, size[0] * size[1]
        fitted = [round(edge / cell) * cell for edge in size]
        if math.prod(fitted) > self.max_pixels:
            shrink = math.sqrt(area / self.max_pixels)
            fitted = [max(cell, math.floor(edge / shrink / cell) * cell) for edge in size]
        elif math.prod(fitted) < self.min_pixels:
            grow = math.sqrt(self.min_pixels / area)
            fitted = [math.ceil(edge * grow / cell) * cell for edge in size]
        if min(fitted) == cell and math.prod(fitted) > self.max_pixels:
            raise UserError(
                f"the image is too narrow | got {size[0]} x {size[1]} pixels, which are "
                f"{math.prod(fitted)} when it is one token wide, "
                f"expected at most {self.max_pixels} | crop it, or build with a larger --max-pixels"
            )
        return fitted[0], fitted[1]


@dataclass(frozen=True)
class WindowsVideo:
    """Videos of kind ``windows``: ``image.frames`` frames at a time are encoded as one image is.

    ``min_pixels`` and ``max_pixels`` are limits for one frame, ``total_pixels`` for all time steps together.
    Position ids advance by ``tokens_per_second``.
    """

    image: WindowsProcessor
    min_pixels: int
    max_pixels: int
    total_pixels: int
    tokens_per_second: float

    def token_layout(self, size: Size, frames: int, interval: float) -> Layout:
        """Return the layout of a video of ``frames`` frames of ``size``, ``interval`` seconds apart.

        It is that of one image, repeated for each step. The first position id of a token is its time. Raises
        UserError if the video has too many visual tokens.
        """
        one = self._frame(frames).token_layout(size)
        steps = -(-frames // self.image.frames)
        most = self.image.max_pixels // self.image.cell**2
        if one.total * steps > most:
            raise UserError(
                f"the video is too long | got {one.total * steps} visual tokens of {frames} frames, "
                f"expected at most {most} | show fewer frames"
            )
        step = np.repeat(np.arange(steps), one.total)
        assert one.positions is not None  # images of this kind have M-RoPE
        positions = np.tile(one.positions, steps)
        seconds = self.tokens_per_second * self.image.frames * interval
        positions[0] = (step * seconds).astype(np.int64)
        return replace(
            one,
            order=np.tile(one.order, steps) + step * one.total,
            pieces=tuple(one.pieces[0] + number * one.total for number in range(steps)),
            steps=steps,
            patch=np.tile(one.patch, steps),
            rows=np.tile(one.rows, steps),
            columns=np.tile(one.columns, steps),
            positions=positions,
            is_video=True,
        )

    def preprocess(self, frames: Sequence[Image.Image]) -> Iterator[np.ndarray]:
        """Yield ``pixel_values`` of as many frames at a time as a patch has.

        The last frame is repeated to fill up.
        """
        whole, one = self.image.frames, self._frame(len(frames))
        for first in range(0, len(frames), whole):
            some = list(frames[first : first + whole])
            yield one.patches(some + some[-1:] * (whole - len(some)))

    def _frame(self, frames: int) -> WindowsProcessor:
        """Return the processor of one frame, which has an equal share of the video's pixel limit."""
        share = self.total_pixels * self.image.frames // frames
        high = max(min(self.max_pixels, share), int(self.min_pixels * 1.05))
        return replace(self.image, min_pixels=self.min_pixels, max_pixels=high)


def _window_order(grid: tuple[int, int], side: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the tokens of a ``grid`` window by window, in raster order within windows and among them.

    These are two int64 [T]: places in the grid's raster, and numbers of windows.
    """
    y, x = np.divmod(np.arange(grid[0] * grid[1]), grid[1])
    window = y // side * -(-grid[1] // side) + x // side
    raster = np.argsort(window, kind="stable")
    return raster, window[raster]

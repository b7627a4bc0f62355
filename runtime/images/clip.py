"""CLIP's images, as in LLaVA-1.5: resized and cropped to one square tile with a constant number of tokens.

The settings in bundle.json. A key that is absent means that the step is not done::

    {"kind": "clip",
     "shortest_edge": 336,            # resize so that the shorter side has this many pixels, or
     "resize": [336, 336],            # resize to exactly [height, width]
     "resample": 3,                   # Pillow's filter number; 3 is bicubic
     "crop": [336, 336],              # centre crop [height, width]; a smaller image is padded with black
     "rescale": 1 / 255,
     "mean": [r, g, b], "std": [r, g, b],
     "size": [336, 336]}              # [height, width] of the result; required
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from foveate.runtime.images.pixels import Normalization
from foveate.runtime.images.token_layout import Layout, Size, single
from foveate.runtime.images.view import Box, View, grid_boxes

__all__ = ["ClipProcessor"]

_RESIZE_WHOLE = 64_000_000  # pixels; a thin strip grows without limit when its short side is resized to 336


class _Geometry(NamedTuple):
    """Sizes (width, height) after the resize and of the crop. ``corner`` is left and top of the crop.

    The corner is negative if the crop pads.
    """

    resized: Size
    corner: tuple[int, int]
    crop: Size


@dataclass(frozen=True)
class ClipProcessor:
    """Image processor of kind ``clip``. Sizes in the fields are (width, height)."""

    size: Size
    normalization: Normalization
    shortest_edge: int | None = None
    resize: Size | None = None
    crop: Size | None = None

    varies = False
    video = None

    @classmethod
    def from_json(cls, settings: Mapping[str, Any]) -> ClipProcessor:
        """Return the processor with the settings of bundle.json."""

        def size(name: str) -> Size | None:
            return (settings[name][1], settings[name][0]) if name in settings else None

        return cls(
            (settings["size"][1], settings["size"][0]),
            Normalization.from_json(settings),
            settings.get("shortest_edge"),
            size("resize"),
            size("crop"),
        )

    def preprocess(self, image: Image.Image) -> np.ndarray:
        """Return ``pixel_values``, float32 [1, 3, H, W]."""
        image = self._resize_and_crop(image)
        if image.size != self.size:
            raise ValueError(
                f"the settings give {image.height} x {image.width} pixels, "
                f"not size {self.size[1]} x {self.size[0]}"
            )
        return self.normalization.pixel_values(image)

    def token_layout(self, size: Size, grid: tuple[int, int]) -> Layout:
        """Return the layout of a tile, whatever the image's ``size``."""
        return single(grid)

    def patch_boxes(self, size: Size, grid: tuple[int, int]) -> np.ndarray:
        """Return the box of each visual token on an image of ``size``: float64 [rows * columns, 4]."""
        return grid_boxes(self.seen_box(size), grid)

    def view(self, size: Size, layout: Layout) -> View:
        """Return how the model sees an image of ``size``."""
        grid = layout.finest
        boxes = self.patch_boxes(size, grid)[layout.patch]
        return View(size, self._geometry(size).crop, self.seen_box(size), grid, boxes)

    def seen_box(self, size: Size) -> Box:
        """Return the box that the model sees of an image of ``size``, in pixels of that image.

        It reaches over the image's edge if the crop pads.
        """
        resized, (left, top), crop = self._geometry(size)
        across, down = size[0] / resized[0], size[1] / resized[1]
        return (left * across, top * down, (left + crop[0]) * across, (top + crop[1]) * down)

    def reference_size(self) -> Size:
        """Return the size of the tile."""
        return self.size

    def summary(self, tokens: int, grid: tuple[int, int]) -> str:
        """Return the number of visual tokens in words, for ``foveate inspect``."""
        return f"{tokens} visual tokens, {grid[0]} x {grid[1]}"

    def _geometry(self, size: Size) -> _Geometry:
        width, height = size
        if (edge := self.shortest_edge) is not None:
            tall = width <= height
            resized = (edge, int(edge * height / width)) if tall else (int(edge * width / height), edge)
        else:
            resized = self.resize or size
        if (crop := self.crop) is None:
            return _Geometry(resized, (0, 0), resized)
        return _Geometry(resized, ((resized[0] - crop[0]) // 2, (resized[1] - crop[1]) // 2), crop)

    def _resize_and_crop(self, image: Image.Image) -> Image.Image:
        resized, (left, top), crop = self._geometry(image.size)
        if resized[0] * resized[1] > _RESIZE_WHOLE and left >= 0 and top >= 0:
            return _resize_seen(image, self.seen_box(image.size), crop, self.normalization.resample)
        if resized != image.size:
            image = image.resize(resized, self.normalization.resample)
        return image.crop((left, top, left + crop[0], top + crop[1]))


def _resize_seen(image: Image.Image, box: Box, crop: Size, resample: Image.Resampling) -> Image.Image:
    """Resize and crop in one step, without computing the pixels outside the crop.

    May differ by one grey level.

    Resizes across first and then down, as Pillow does for whole images. Pillow rounds and clips in between,
    so the order matters.
    """
    left, top, right, bottom = box
    reach_x, reach_y = (
        4 * max(1.0, span / n) + 1 for span, n in zip((right - left, bottom - top), crop, strict=True)
    )
    x0, y0 = max(0, int(left - reach_x)), max(0, int(top - reach_y))
    x1, y1 = min(image.width, int(right + reach_x) + 1), min(image.height, int(bottom + reach_y) + 1)
    image = image.crop((x0, y0, x1, y1))
    columns = (left - x0, 0, min(right - x0, image.width), image.height)
    image = image.resize((crop[0], image.height), resample, box=columns)
    rows = (0, top - y0, crop[0], min(bottom - y0, image.height))
    return image.resize(crop, resample, box=rows)

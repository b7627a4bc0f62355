"""Image processors: what is particular to a kind of image. Each kind has a module of its own.

* ``clip``: LLaVA-1.5, one square tile.
* ``anyres``: LLaVA-NeXT, the whole image and tiles of it.
* ``windows``: Qwen2.5-VL, any size, and videos.

The steps are those of the checkpoint's Hugging Face image processor. They follow settings that the export
writes into the bundle (``image`` in bundle.json). The kinds' modules list them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from PIL import Image

from foveate.engines.errors import unknown
from foveate.runtime.images.anyres import AnyresProcessor
from foveate.runtime.images.clip import ClipProcessor
from foveate.runtime.images.token_layout import Layout, Size
from foveate.runtime.images.view import View
from foveate.runtime.images.windows import WindowsProcessor

__all__ = ["ImageProcessor", "VideoProcessor", "image_processor"]


class ImageProcessor(Protocol):
    """A kind of image: its pixels, its visual tokens, and their places on the image.

    Images are upright, in mode RGB (``image_file.load_image``). Sizes are (width, height) of such an image,
    grids are (rows, columns).
    """

    @property
    def varies(self) -> bool:
        """Return whether the number of visual tokens depends on the image."""

    @property
    def video(self) -> VideoProcessor | None:
        """Return the processor of videos, None if the model takes none."""

    def preprocess(self, image: Image.Image) -> np.ndarray:
        """Return the vision encoder's input ``pixel_values``, float32. Its shape is that of the kind."""

    def token_layout(self, size: Size, grid: tuple[int, int]) -> Layout:
        """Return the layout of an image's visual tokens. ``grid`` is that of a tile.

        Raises UserError for an image that has no layout.
        """

    def patch_boxes(self, size: Size, grid: tuple[int, int]) -> np.ndarray:
        """Return the box of each token of ``grid`` on the image: float64 [rows * columns, 4], row-major.

        A box is left, top, right, bottom in pixels. ``grid`` is ``Layout.finest``. Neighbours share their
        edges exactly.
        """

    def view(self, size: Size, layout: Layout) -> View:
        """Return how the model sees an image of ``size`` with ``layout``."""

    def reference_size(self) -> Size:
        """Return the size of the image with which a build records reference answers."""

    def summary(self, tokens: int, grid: tuple[int, int]) -> str:
        """Return the number of visual tokens in words. ``tokens`` is the largest number there is."""


class VideoProcessor(Protocol):
    """Videos of a kind of image. Frames are upright, in mode RGB, and have one size."""

    def token_layout(self, size: Size, frames: int, interval: float) -> Layout:
        """Return the layout of ``frames`` frames of ``size``, ``interval`` seconds apart.

        Raises UserError for a video that is too long.
        """

    def preprocess(self, frames: Sequence[Image.Image]) -> Iterator[np.ndarray]:
        """Yield the vision encoder's input for each of its runs (``Layout.steps``)."""


_KINDS: dict[str, Callable[[Mapping[str, Any]], ImageProcessor]] = {
    "anyres": AnyresProcessor.from_json,
    "clip": ClipProcessor.from_json,
    "windows": WindowsProcessor.from_json,
}


def image_processor(settings: Mapping[str, Any]) -> ImageProcessor:
    """Return the image processor with the ``settings`` of bundle.json.

    Raises UserError for an unknown kind.
    """
    if settings["kind"] not in _KINDS:
        raise unknown("kind of image preprocessing", settings["kind"], _KINDS)
    return _KINDS[settings["kind"]](settings)

"""Images before and after the vision encoder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from foveate.engines.buffer import Buffer
from foveate.engines.row_gather import Rows
from foveate.runtime.images.image_file import ImageReader
from foveate.runtime.images.token_layout import Layout
from foveate.runtime.images.view import View
from foveate.runtime.video.video_file import Video

__all__ = ["ImageFeatures", "ImageInput"]


@dataclass(frozen=True, eq=False)
class ImageInput:
    """An image or a video before the vision encoder, with the layout of its visual tokens."""

    source: ImageReader | Video
    layout: Layout


@dataclass(frozen=True, eq=False)
class ImageFeatures:
    """An image after the vision encoder.

    ``outputs`` are ``projected`` (the visual tokens) and the taps, left where the engine put them. For a
    video they hold the rows of all its steps. ``view`` tells where the visual tokens lie on the original.
    """

    outputs: Mapping[str, Buffer] | Mapping[str, Rows]
    layout: Layout
    view: View

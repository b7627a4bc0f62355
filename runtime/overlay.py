"""What a pruner kept, as a picture: kept patches in their colours, the rest dimmed; the frame is the original picture's.

Goes in: the picture, the kept indices and the bundle's grid and image settings. What the crop cut off is dimmed like
what was pruned, since the model sees neither. Merged rows (-1) have no place on the picture and are left out.
"""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageChops, ImageFilter

from foveate.engines.errors import UserError
from foveate.runtime.image import ImageSource, load_image, patch_boxes

__all__ = ["draw_overlay", "save_overlay"]

_SMALLEST, _LARGEST = 640, 2048  # pixels of the longer side: small pictures grow, very large ones shrink
_RIM = (255, 214, 102)
_DIM = 0.36  # brightness of what was dropped
_VEIL = 20  # and a little grey over it, so that black that was dropped differs from black that was kept
_GREY = 0.6  # share of grey in it


def draw_overlay(
    image: ImageSource, kept: np.ndarray, grid: tuple[int, int], settings: dict[str, Any]
) -> Image.Image:
    """An RGB picture in the proportions of ``image``, 640 to 2048 pixels on its longer side.

    ``kept`` int64 [R] are indices into ``grid`` (rows, columns), row-major; -1 is ignored. ``settings`` are those of
    ``runtime.image``. Raises UserError when ``image`` cannot be read.
    """
    picture = load_image(image)
    boxes = patch_boxes(picture.size, settings, grid)
    canvas = picture.resize(_canvas(picture.size), Image.Resampling.LANCZOS)
    scale = np.divide(canvas.size, picture.size)
    mask = _coverage(canvas.size, boxes * np.tile(scale, 2), _chosen(kept, grid))
    width = max(1, round(max(canvas.size) / 640))
    rim = ImageChops.subtract(mask.filter(ImageFilter.MaxFilter(2 * width + 1)), mask)
    result = Image.composite(canvas, _dimmed(canvas), mask)
    return Image.composite(Image.new("RGB", canvas.size, _RIM), result, rim.point(lambda v: v * 7 // 10))


def save_overlay(
    image: ImageSource,
    kept: np.ndarray,
    grid: tuple[int, int],
    settings: dict[str, Any],
    path: str | PathLike[str],
) -> None:
    """``draw_overlay`` into the file ``path``; its suffix names the format. Raises UserError when that cannot be."""
    suffix, formats = Path(path).suffix.lower(), Image.registered_extensions()
    if formats.get(suffix) not in Image.SAVE:
        raise UserError(
            f"cannot save the overlay as {path} | got the suffix {suffix!r} | use .png or .jpg", code=2
        )
    try:
        draw_overlay(image, kept, grid, settings).save(path)
    except OSError as error:
        reason = error.strerror or error
        raise UserError(
            f"cannot save the overlay as {path} | {reason} | name a file in a writable folder"
        ) from error


def _canvas(size: tuple[int, int]) -> tuple[int, int]:
    longer = max(size)
    factor = -(-_SMALLEST // longer) if longer < _SMALLEST else min(1.0, _LARGEST / longer)
    return max(1, round(size[0] * factor)), max(1, round(size[1] * factor))


def _chosen(kept: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    chosen = np.zeros(grid[0] * grid[1], bool)
    chosen[kept[kept >= 0]] = True
    return chosen.reshape(grid)


def _coverage(size: tuple[int, int], boxes: np.ndarray, chosen: np.ndarray) -> Image.Image:
    """How much of each pixel lies in a chosen patch: mode L, 255 for all of it."""
    rows, columns = chosen.shape
    boxes = boxes.reshape(rows, columns, 4)
    across = _overlap(size[0], boxes[0, :, 0], boxes[0, :, 2])
    down = _overlap(size[1], boxes[:, 0, 1], boxes[:, 0, 3])
    share = down @ chosen.astype(np.float32) @ across.T
    return Image.fromarray(np.round(share.clip(0, 1) * 255).astype(np.uint8))


def _overlap(pixels: int, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """float32 [pixels, n]: the share of each pixel's extent that each interval covers."""
    at = np.arange(pixels)[:, None]
    return (np.minimum(at + 1, ends) - np.maximum(at, starts)).clip(0, 1).astype(np.float32)


def _dimmed(image: Image.Image) -> Image.Image:
    grey = image.convert("L").convert("RGB")
    return Image.blend(image, grey, _GREY).point(lambda v: round(v * _DIM) + _VEIL)

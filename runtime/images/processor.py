"""Preprocessing: turn an image into the float32 tensor that the vision encoder takes.

The steps are those of the checkpoint's Hugging Face image processor. They follow a dict of settings that the
family's export code writes into the bundle. A key that is absent means that the step is not done::

    {"kind": "clip",
     "shortest_edge": 336,            # resize so that the shorter side has this many pixels, or
     "resize": [336, 336],            # resize to exactly [height, width]
     "resample": 3,                   # Pillow's filter number; 3 is bicubic
     "crop": [336, 336],              # centre crop [height, width]; a smaller image is padded with black
     "rescale": 1 / 255,
     "mean": [r, g, b], "std": [r, g, b],
     "size": [336, 336]}              # [height, width] of the result; required

    {"kind": "anyres",                # LLaVA-NeXT: the image squeezed into a tile, then again, cut into tiles
     "tile": 336,                     # side of a tile in pixels
     "pinpoints": [[336, 672], ...],  # [height, width] of canvases of tiles; the image is centred in one
     "resample": 3, "rescale": 1 / 255, "mean": [r, g, b], "std": [r, g, b]}

    {"kind": "windows",               # Qwen2.5-VL: any size, in patches, window by window
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

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from PIL import Image

from foveate.engines.errors import unknown
from foveate.runtime.images.image_file import load_image
from foveate.runtime.images.image_source import ImageSource
from foveate.runtime.images.token_layout import KINDS, fit_canvas, fit_pixels, of_video, padded, window_order

__all__ = ["film_steps", "patch_boxes", "preprocess", "resized_size", "seen_box"]

_RESIZE_WHOLE = 64_000_000  # pixels; a thin strip grows without limit when its short side is resized to 336


def preprocess(image: ImageSource, settings: dict[str, Any]) -> np.ndarray:
    """Return ``pixel_values``, float32.

    The shape is [1, 3, H, W] for kind ``clip``, with [H, W] = ``settings["size"]``; [tiles, 3, H, W] for
    ``anyres``; [tokens, patches per token, numbers per patch] for ``windows``.
    """
    if settings["kind"] == "windows":
        return _patches([load_image(image)] * settings["frames"], settings)
    if settings["kind"] == "anyres":
        return np.concatenate([_normalized(tile, settings) for tile in _tiles(load_image(image), settings)])
    _check_kind(settings)
    image = _resize_and_crop(load_image(image), settings)
    height, width = settings["size"]
    if image.size != (width, height):
        raise ValueError(
            f"the settings give {image.height} x {image.width} pixels, not size {height} x {width}"
        )
    return _normalized(image, settings)


def _normalized(image: Image.Image, settings: dict[str, Any]) -> np.ndarray:
    """Return rescaled and normalized pixels, float32 [1, 3, H, W]."""
    # A table with one value per grey level and channel gives the same float32 results as computing
    # each pixel, without large temporaries.
    table = np.arange(256, dtype=np.float64)[:, None].repeat(3, axis=1)
    table = (table * settings.get("rescale", 1.0)).astype(np.float32)
    if "mean" in settings:
        table = (table - np.float32(settings["mean"])) / np.float32(settings["std"])
    pixels = np.asarray(image)  # [H, W, 3]
    return np.stack([table[:, c][pixels[:, :, c]] for c in range(3)])[None]


def film_steps(frames: Sequence[Image.Image], settings: dict[str, Any]) -> Iterator[np.ndarray]:
    """Yield ``pixel_values`` of a video's ``frames``, as many at a time as a patch has.

    The last frame is repeated to fill up.
    """
    whole, limits = settings["frames"], of_video(settings, len(frames))
    for first in range(0, len(frames), whole):
        some = list(frames[first : first + whole])
        yield _patches(some + some[-1:] * (whole - len(some)), limits)


def _patches(frames: list[Image.Image], settings: dict[str, Any]) -> np.ndarray:
    """Return float32 [tokens, merge^2, 3 * frames * patch^2] in the order of ``window_order``.

    All frames have one size.
    """
    size = fit_pixels(frames[0].size, settings)
    resample = settings.get("resample", Image.Resampling.BICUBIC)
    patch, merge = settings["patch"], settings["merge"]
    grid = size[1] // (patch * merge), size[0] // (patch * merge)
    done: dict[int, np.ndarray] = {}  # by object: an image is repeated as its own next frame
    for frame in frames:
        if id(frame) not in done:
            done[id(frame)] = _normalized(frame.resize(size, resample), settings)[0]
    pixels = np.stack([done[id(frame)] for frame in frames])  # [F,3,H,W]
    pixels = pixels.reshape(len(frames), 3, grid[0], merge, patch, grid[1], merge, patch)
    rows = pixels.transpose(2, 5, 3, 6, 1, 0, 4, 7).reshape(grid[0] * grid[1], merge**2, -1)
    return rows[window_order(grid, settings["window"])[0]]


def _tiles(image: Image.Image, settings: dict[str, Any]) -> list[Image.Image]:
    side, resample = settings["tile"], settings.get("resample", Image.Resampling.BICUBIC)
    height, width = fit_canvas(image.size, settings["pinpoints"])
    fitted, corner = padded(image.size, (height, width))
    canvas = Image.new("RGB", (width, height))
    canvas.paste(image.resize(fitted, resample), corner)
    corners = [(left, top) for top in range(0, height, side) for left in range(0, width, side)]
    pieces = [canvas.crop((left, top, left + side, top + side)) for left, top in corners]
    return [image.resize((side, side), resample), *pieces]


def seen_box(size: tuple[int, int], settings: dict[str, Any]) -> tuple[float, float, float, float]:
    """Return the box that the model sees of an image: left, top, right, bottom in pixels of that image.

    ``size`` is the image's (width, height). The box reaches over the image's edge if the crop pads.
    """
    resized, corner, crop = _geometry(size, settings)
    across, down = size[0] / resized[0], size[1] / resized[1]
    left, top = corner
    return (left * across, top * down, (left + crop[0]) * across, (top + crop[1]) * down)


def resized_size(size: tuple[int, int], settings: dict[str, Any]) -> tuple[int, int]:
    """Return width and height of what the model sees of an image, for settings of kind ``clip``."""
    return _geometry(size, settings)[2]


def patch_boxes(size: tuple[int, int], settings: dict[str, Any], grid: tuple[int, int]) -> np.ndarray:
    """Return the box of each visual token on the image: float64 [rows * columns, 4].

    A box is left, top, right, bottom.
    ``size`` is (width, height) of the upright image, ``grid`` is (rows, columns) of the vision encoder. Boxes
    are in row-major order, so row ``i`` is the token ``i`` of ``kept``. Neighbours share their edges exactly.
    """
    rows, columns = grid
    if settings["kind"] == "anyres":
        left, top, right, bottom = _lines_box(size, settings, grid)
    elif settings["kind"] == "windows":
        left, top, right, bottom = 0, 0, *size
    else:
        left, top, right, bottom = seen_box(size, settings)
    xs, ys = np.linspace(left, right, columns + 1), np.linspace(top, bottom, rows + 1)
    row, column = np.divmod(np.arange(rows * columns), columns)
    return np.stack([xs[column], ys[row], xs[column + 1], ys[row + 1]], axis=1)


def _lines_box(
    size: tuple[int, int], settings: dict[str, Any], grid: tuple[int, int]
) -> tuple[float, float, float, float]:
    """Return the box that the ``grid`` of LLaVA-NeXT's tiles shows, in pixels of the image.

    The box is left, top, right, bottom.
    The tokens of this grid are read line by line.
    """
    canvas = fit_canvas(size, settings["pinpoints"])
    fitted, corner = padded(size, canvas)
    patch = min(canvas[1] / grid[1], canvas[0] / grid[0])  # padding is left out on two opposite sides at most
    box = []
    for end in (-1, 1):
        for axis in (0, 1):  # across, down; the canvas has these two in the opposite order
            edge = canvas[1 - axis] / 2 + end * grid[1 - axis] * patch / 2
            box.append((edge - corner[axis]) * size[axis] / fitted[axis])
    return box[0], box[1], box[2], box[3]


def _check_kind(settings: dict[str, Any]) -> None:
    if settings["kind"] != "clip":
        raise unknown("kind of image preprocessing", settings["kind"], KINDS)


def _geometry(
    size: tuple[int, int], settings: dict[str, Any]
) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int]]:
    """Return the geometry of resize and crop.

    These are (width, height) after the resize; left and top of the crop in it, negative if the crop pads; and
    (width, height) of the crop.
    """
    width, height = size
    if "shortest_edge" in settings:
        edge = settings["shortest_edge"]
        if width <= height:
            resized = (edge, int(edge * height / width))
        else:
            resized = (int(edge * width / height), edge)
    elif "resize" in settings:
        resized = (settings["resize"][1], settings["resize"][0])
    else:
        resized = size
    if "crop" not in settings:
        return resized, (0, 0), resized
    crop = (settings["crop"][1], settings["crop"][0])
    return resized, ((resized[0] - crop[0]) // 2, (resized[1] - crop[1]) // 2), crop


def _resize_and_crop(image: Image.Image, settings: dict[str, Any]) -> Image.Image:
    resized, (left, top), crop = _geometry(image.size, settings)
    resample = settings.get("resample", Image.Resampling.BICUBIC)
    if resized[0] * resized[1] > _RESIZE_WHOLE and left >= 0 and top >= 0:
        return _resize_seen(image, seen_box(image.size, settings), crop, resample)
    if resized != image.size:
        image = image.resize(resized, resample)
    return image.crop((left, top, left + crop[0], top + crop[1]))


def _resize_seen(
    image: Image.Image, box: tuple[float, float, float, float], crop: tuple[int, int], resample: int
) -> Image.Image:
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

"""Drawing of what the pruners kept: kept patches in their colours, the rest of the image dimmed.

Input: the image, the indices that stayed after each stage, and the bundle's grid and image processor. Parts
that were cropped are dimmed like pruned ones, since the model sees neither. A patch that was merged into
another one is less dimmed. It is tinted in the hue of its row, with a line to the patch that absorbed it.
Rows without a place (-1) show as a hue only.
"""

from __future__ import annotations

import colorsys
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageFont

from foveate.engines.disk.files import atomic_file
from foveate.engines.errors import UserError
from foveate.runtime.images.image_file import load_image
from foveate.runtime.images.image_source import ImageSource
from foveate.runtime.images.processor import ImageProcessor

__all__ = ["draw_overlay", "draw_stages", "save_overlay"]

# pixels of the longer side: small images are enlarged, very large ones reduced
_SMALLEST, _LARGEST = 640, 2048
_RIM = (255, 214, 102)
_DIM = 0.36  # brightness of dropped patches
_VEIL = 20  # grey added to dropped patches, so that dropped black differs from kept black
_GREY = 0.6  # share of grey in dropped patches
_MERGED = 0.6  # dimming of merged patches, from 0 (as kept) to 1 (as dropped)
_TINT, _LINE, _DOT = 46, 100, 150  # opacity, out of 255, of a merged patch's hue, line and end point
_PAPER, _INK = (24, 25, 27), (232, 230, 222)  # colours of captions


def draw_overlay(
    image: ImageSource,
    kept: np.ndarray,
    grid: tuple[int, int],
    processor: ImageProcessor,
    owner: np.ndarray | None = None,
    *,
    largest: int = _LARGEST,
) -> Image.Image:
    """Return an RGB image in the proportions of ``image``, 640 to ``largest`` pixels on its longer side.

    ``kept`` int64 [R] are indices into ``grid`` (rows, columns), row-major; -1 is a row without a place.
    ``owner`` int64 [N] is the row of ``kept`` that each patch went into, -1 if none. ``processor`` tells
    where patches lie. Raises UserError if ``image`` cannot be read.
    """
    opened = load_image(image)
    canvas = opened.resize(_canvas(opened.size, largest), Image.Resampling.LANCZOS)
    boxes = processor.patch_boxes(opened.size, grid) * np.tile(np.divide(canvas.size, opened.size), 2)
    mask = _coverage(canvas.size, boxes, _chosen(kept, grid))
    result = _dimmed(canvas)
    if owner is not None and len(merged := _absorbed(kept, owner)):
        half = Image.blend(canvas, result, _MERGED)
        result = Image.composite(half, result, _coverage(canvas.size, boxes, _chosen(merged, grid)))
        threads = _threads(canvas.size, boxes, merged, owner[merged], kept[owner[merged]])
        result.paste(threads, mask=threads)
    width = max(1, round(max(canvas.size) / 640))
    rim = ImageChops.subtract(mask.filter(ImageFilter.MaxFilter(2 * width + 1)), mask)
    result = Image.composite(canvas, result, mask)
    return Image.composite(Image.new("RGB", canvas.size, _RIM), result, rim.point(lambda v: v * 7 // 10))


def draw_stages(
    image: ImageSource,
    stages: Mapping[str, np.ndarray],
    grid: tuple[int, int],
    processor: ImageProcessor,
    owner: np.ndarray | None = None,
    cuts: Sequence[int] = (),
    total: int | None = None,
) -> Image.Image:
    """Return ``draw_overlay`` after each stage, from left to right, with captions.

    ``stages`` maps "pruner", "pruner.0", ... to the indices left after that stage. ``owner`` belongs to the
    first stage. ``cuts`` are the decoder layers before which "pruner.0", ... work. ``total`` is the number of
    visual tokens if the grid does not hold them all. A single "pruner" that only selects gets no caption.
    """
    (first, kept), *later = stages.items()
    if not later and first == "pruner" and (kept >= 0).all() and not len(_absorbed(kept, owner)):
        return draw_overlay(image, kept, grid, processor)
    owners = {first: owner}
    largest = max(_SMALLEST, _LARGEST // len(stages))
    panels = [
        _captioned(
            draw_overlay(image, kept, grid, processor, owners.get(stage), largest=largest),
            _caption(stage, kept, total or grid[0] * grid[1], owners.get(stage), cuts),
        )
        for stage, kept in stages.items()
    ]
    gap = panels[0].width // 80
    sheet = Image.new("RGB", (sum(p.width + gap for p in panels) - gap, panels[0].height), _PAPER)
    for number, panel in enumerate(panels):
        sheet.paste(panel, (number * (panel.width + gap), 0))
    return sheet


def save_overlay(drawn: Image.Image, path: str | PathLike[str]) -> None:
    """Save ``drawn`` as the file ``path``, whose suffix gives the format. Raises UserError if that fails."""
    suffix, formats = Path(path).suffix.lower(), Image.registered_extensions()
    if formats.get(suffix) not in Image.SAVE:
        raise UserError(
            f"cannot save the overlay as {path} | got the suffix {suffix!r} | use .png or .jpg", code=2
        )
    try:
        with atomic_file(path) as part:
            drawn.save(part)
    except OSError as error:
        reason = error.strerror or error
        raise UserError(
            f"cannot save the overlay as {path} | {reason} | name a file in a writable folder"
        ) from error


def _canvas(size: tuple[int, int], largest: int) -> tuple[int, int]:
    longer = max(size)
    factor = -(-_SMALLEST // longer) if longer < _SMALLEST else min(1.0, largest / longer)
    return max(1, round(size[0] * factor)), max(1, round(size[1] * factor))


def _chosen(patches: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    chosen = np.zeros(grid[0] * grid[1], bool)
    chosen[patches[patches >= 0]] = True
    return chosen.reshape(grid)


def _absorbed(kept: np.ndarray, owner: np.ndarray | None) -> np.ndarray:
    """Return the patches that were merged into a row of another patch, int64."""
    if owner is None:
        return np.empty(0, np.int64)
    mine = np.zeros(len(owner), bool)
    mine[kept[kept >= 0]] = True
    return np.flatnonzero((owner >= 0) & ~mine)


def _threads(
    size: tuple[int, int], boxes: np.ndarray, patches: np.ndarray, rows: np.ndarray, anchors: np.ndarray
) -> Image.Image:
    """Return an RGBA layer: ``patches`` in the hue of their ``rows``, and lines to their ``anchors``.

    An anchor of -1 means no line.
    """
    # drawn at twice the size and reduced, because ImageDraw does not smooth lines
    layer = Image.new("RGBA", (2 * size[0], 2 * size[1]))
    pen, width = ImageDraw.Draw(layer), max(2, round(max(size) / 320))
    boxes = 2 * boxes
    middle = (boxes[:, :2] + boxes[:, 2:]) / 2
    for patch, row in zip(patches, rows, strict=True):
        pen.rectangle([*boxes[patch, :2], *(boxes[patch, 2:] - 1)], fill=(*_hue(row), _TINT))
    for patch, row, anchor in zip(patches, rows, anchors, strict=True):
        if anchor >= 0:
            pen.line([tuple(middle[patch]), tuple(middle[anchor])], fill=(*_hue(row), _LINE), width=width)
            dot = [*(middle[patch] - 2 * width), *(middle[patch] + 2 * width)]
            pen.ellipse(dot, fill=(*_hue(row), _DOT))
    return layer.reduce(2)


def _hue(row: int) -> tuple[int, int, int]:
    """Return a colour for a row.

    Hues are far apart for consecutive rows, and for rows below each other in a grid of 4, 6, 8, 12, 16 or 24
    columns. They are multiples of the plastic number's inverse square.
    """
    red, green, blue = (round(255 * v) for v in colorsys.hsv_to_rgb(row * 0.569840 % 1, 0.5, 1.0))
    return red, green, blue


def _caption(stage: str, kept: np.ndarray, total: int, owner: np.ndarray | None, cuts: Sequence[int]) -> str:
    number = stage.partition(".")[2]
    layer = f", layer {cuts[int(number)]}" if number else ""
    text = f"after {stage}{layer}: {len(kept)} of {total} tokens"
    if placeless := int((kept < 0).sum()):
        text += f", {placeless} of them without a place"
    if absorbed := len(_absorbed(kept, owner)):
        text += f"; {absorbed} patches merged"
    return text


def _captioned(panel: Image.Image, text: str) -> Image.Image:
    """Return ``panel`` with a line of text under it, in letters small enough to fit."""
    size = max(10, round(panel.width / 28))
    while size > 6 and ImageFont.load_default(size).getlength(text) > 0.96 * panel.width:
        size -= 1
    framed = Image.new("RGB", (panel.width, panel.height + round(2.4 * size)), _PAPER)
    framed.paste(panel)
    at = panel.width * 0.02, panel.height + 1.2 * size
    ImageDraw.Draw(framed).text(at, text, fill=_INK, font=ImageFont.load_default(size), anchor="lm")
    return framed


def _coverage(size: tuple[int, int], boxes: np.ndarray, chosen: np.ndarray) -> Image.Image:
    """Return how much of each pixel lies in a chosen patch, as an image of mode L; 255 is all of it."""
    rows, columns = chosen.shape
    boxes = boxes.reshape(rows, columns, 4)
    across = _overlap(size[0], boxes[0, :, 0], boxes[0, :, 2])
    down = _overlap(size[1], boxes[:, 0, 1], boxes[:, 0, 3])
    share = down @ chosen.astype(np.float32) @ across.T
    return Image.fromarray(np.round(share.clip(0, 1) * 255).astype(np.uint8))


def _overlap(pixels: int, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Return float32 [pixels, n]: the share of each pixel that each interval covers."""
    at = np.arange(pixels)[:, None]
    return (np.minimum(at + 1, ends) - np.maximum(at, starts)).clip(0, 1).astype(np.float32)


def _dimmed(image: Image.Image) -> Image.Image:
    grey = image.convert("L").convert("RGB")
    return Image.blend(image, grey, _GREY).point(lambda v: round(v * _DIM) + _VEIL)

"""Layout: the visual tokens of an image, and the order in which the language model reads them.

Input: an image's size and the bundle's image settings. Output: index arrays on the host. Kinds of settings
(``images.processor``):

* ``clip``: one square tile with all its tokens in raster order. * ``windows`` (Qwen2.5-VL): tokens of 2 x 2
patches, ordered by the windows in which the vision encoder attends: 4 x 4
  tokens, fewer at the image's edges.
* ``anyres`` (LLaVA-NeXT): the whole image squeezed into a tile, then the image again, larger, cut into tiles.
Tokens of
  the tiles are read line by line across tiles, without those of the padding, and with a newline after each
  line.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import numpy as np

from foveate.engines.errors import UserError, unknown

__all__ = [
    "KINDS",
    "Layout",
    "film",
    "fit_canvas",
    "fit_pixels",
    "layout",
    "of_video",
    "padded",
    "single",
    "split",
    "window_order",
]

KINDS = ("anyres", "clip", "windows")
Size = tuple[int, int]
"""Width and height, as in Pillow."""


@dataclass(frozen=True, eq=False)
class Layout:
    """The T visual tokens of an image in the order of the language model.

    ``order`` int64 [T]: the vision encoder's token that each is, counted through all ``tiles``; -1 for a
    newline. ``pieces``: the tokens that were encoded together, each int64 [rows, columns] of indices into
    ``order``. ``patch``, ``rows``, ``columns`` int64 [T]: a token's place in the raster of its grid (-1 for a
    newline), and the size of that grid, which may span several tiles. ``feeds``: inputs of the vision encoder
    besides pixels. ``positions`` int64 [3, T], with M-RoPE: time, height and width, counted from the image's
    first position. ``span``: positions that the image takes. ``steps``: how often the vision encoder runs;
    more than once only if ``is_video``.
    """

    order: np.ndarray
    pieces: tuple[np.ndarray, ...]
    tiles: int
    patch: np.ndarray
    rows: np.ndarray
    columns: np.ndarray
    feeds: dict[str, np.ndarray] = field(default_factory=dict)
    positions: np.ndarray | None = None
    span: int = 0
    steps: int = 1
    is_video: bool = False

    @property
    def total(self) -> int:
        return len(self.order)

    @property
    def newlines(self) -> np.ndarray:
        """Return the places of the newlines, int64."""
        return np.flatnonzero(self.order < 0)

    @property
    def finest(self) -> tuple[int, int]:
        """Return rows and columns of the last grid, which shows the image largest."""
        return int(self.rows[-1]), int(self.columns[-1])

    def on_finest(self, kept: np.ndarray) -> np.ndarray:
        """Return tokens as places in the last grid. -1 for tokens of other grids and for newlines."""
        return np.where(kept >= self._first, self.patch[kept], -1)

    def owned(self, owner: np.ndarray | None) -> np.ndarray | None:
        """Return ``owner`` [T] for the tokens of the last grid, in raster order."""
        if owner is None:
            return None
        mine = self.patch[self._first :]
        return owner[self._first :][mine >= 0]

    @property
    def _first(self) -> int:
        """Return the first token of the last grid."""
        return int(np.flatnonzero(self.patch == 0)[-1])

    @property
    def whole(self) -> np.ndarray:
        """Return all tokens except newlines as one piece: int64 [1, columns]."""
        return np.flatnonzero(self.order >= 0)[None]


def film(size: Size, settings: dict, frames: int, interval: float) -> Layout:
    """Return the layout of a video: the same image once per ``settings["frames"]`` of its ``frames``.

    Frames are ``interval`` seconds apart. The first position id of a token is its time. Raises UserError if
    the bundle's family takes no videos, or if the video has too many visual tokens.
    """
    if "video" not in settings:
        raise UserError(
            "this model takes no videos | expected images | give frames of it with --image", code=2
        )
    one = _windowed(size, of_video(settings, frames))
    steps = -(-frames // settings["frames"])
    most = settings["max_pixels"] // (settings["patch"] * settings["merge"]) ** 2
    if one.total * steps > most:
        raise UserError(
            f"the video is too long | got {one.total * steps} visual tokens of {frames} frames, "
            f"expected at most {most} | show fewer frames"
        )
    step = np.repeat(np.arange(steps), one.total)
    seconds = settings["video"]["tokens_per_second"] * settings["frames"] * interval
    positions = np.tile(one.positions, steps)
    positions[0] = (step * seconds).astype(np.int64)
    return replace(
        one,
        order=np.tile(one.order, steps) + step * one.total,
        pieces=tuple(one.pieces[0] + number * one.total for number in range(steps)),
        steps=steps,
        **{name: np.tile(getattr(one, name), steps) for name in ("patch", "rows", "columns")},
        positions=positions,
        is_video=True,
    )


def of_video(settings: dict, frames: int) -> dict:
    """Return the settings for a video's frames. Each frame gets an equal share of the video's pixel limit."""
    limits = settings["video"]
    share = limits["total_pixels"] * settings["frames"] // frames
    high = max(min(limits["max_pixels"], share), int(limits["min_pixels"] * 1.05))
    return {**settings, "min_pixels": limits["min_pixels"], "max_pixels": high}


def layout(size: Size, settings: dict, grid: tuple[int, int]) -> Layout:
    """Return the layout of an image of ``size``. ``grid`` is the number of rows and columns of a tile."""
    if settings["kind"] == "clip":
        return single(grid)
    if settings["kind"] == "anyres":
        return _tiled(size, settings, grid)
    if settings["kind"] == "windows":
        return _windowed(size, settings)
    raise unknown("kind of image preprocessing", settings["kind"], KINDS)


def single(grid: tuple[int, int]) -> Layout:
    """Return the layout of one tile with all its tokens."""
    rows, columns = grid
    order = np.arange(rows * columns)
    return Layout(
        order,
        (order.reshape(grid),),
        1,
        order,
        np.full_like(order, rows),
        np.full_like(order, columns),
    )


def _tiled(size: Size, settings: dict, grid: tuple[int, int]) -> Layout:
    rows, columns = grid
    side = settings["tile"]
    height, width = fit_canvas(size, settings["pinpoints"])
    down, across = height // side, width // side
    y, x = (np.arange(n) for n in (down * rows, across * columns))
    number = (y // rows)[:, None] * across + x // columns + 1  # of the tile; 0 is the tile of the whole image
    canvas = number * rows * columns + (y % rows)[:, None] * columns + x % columns
    top, left = _margins(size, canvas.shape)
    seen = canvas[top : len(y) - top, left : len(x) - left]
    lines = np.pad(seen, ((0, 0), (0, 1)), constant_values=-1)
    first = rows * columns
    order = np.concatenate([np.arange(first), lines.ravel()])
    patch = np.where(lines < 0, -1, np.cumsum(lines >= 0).reshape(lines.shape) - 1)
    places = first + np.arange(lines.size).reshape(lines.shape)[:, :-1]
    tile = number[top : len(y) - top, left : len(x) - left]
    pieces = [places[_block(tile == n)] for n in range(1, down * across + 1) if (tile == n).any()]

    def told(whole: int, line: int) -> np.ndarray:
        return np.repeat(np.array([whole, line]), [first, lines.size])

    return Layout(
        order,
        (np.arange(first).reshape(grid), *pieces),
        1 + down * across,
        np.concatenate([np.arange(first), patch.ravel()]),
        told(rows, seen.shape[0]),
        told(columns, seen.shape[1]),
    )


def _windowed(size: Size, settings: dict) -> Layout:
    cell = settings["patch"] * settings["merge"]
    width, height = fit_pixels(size, settings)
    rows, columns = height // cell, width // cell
    raster, window = window_order((rows, columns), settings["window"])
    first = np.flatnonzero(np.diff(window, prepend=-1))  # first token of each window
    inside = np.arange(len(raster)) - first[window]
    slots = np.full((len(first), settings["window"] ** 2), -1)
    slots[window, inside] = np.arange(len(raster))
    place = np.stack(np.divmod(raster, columns), axis=1)
    index = np.arange(rows * columns)
    return Layout(
        np.argsort(raster),
        (index.reshape(rows, columns),),
        1,
        index,
        np.full_like(index, rows),
        np.full_like(index, columns),
        {"place": place, "slots": slots, "back": window * slots.shape[1] + inside},
        np.stack([np.zeros_like(index), *np.divmod(index, columns)]),
        max(rows, columns),
    )


def window_order(grid: tuple[int, int], side: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the tokens of a ``grid`` window by window, in raster order within windows and among them.

    These are two int64 [T]: places in the grid's raster, and numbers of windows.
    """
    y, x = np.divmod(np.arange(grid[0] * grid[1]), grid[1])
    window = y // side * -(-grid[1] // side) + x // side
    raster = np.argsort(window, kind="stable")
    return raster, window[raster]


def fit_pixels(size: Size, settings: dict) -> Size:
    """Return width and height as close to ``size`` as the limits on their product allow.

    Both are multiples of a visual token's side. Raises UserError for a strip more than 200 times as long as
    wide, and for one that exceeds the limit even at one token's width.
    """
    if max(size) > 200 * min(size):
        raise UserError(
            f"the image is too narrow | got {size[0]} x {size[1]} pixels, "
            "expected a side at most 200 times the other | crop it"
        )
    cell = settings["patch"] * settings["merge"]
    low, high, area = settings["min_pixels"], settings["max_pixels"], size[0] * size[1]
    fitted = [round(edge / cell) * cell for edge in size]
    if math.prod(fitted) > high:
        shrink = math.sqrt(area / high)
        fitted = [max(cell, math.floor(edge / shrink / cell) * cell) for edge in size]
    elif math.prod(fitted) < low:
        grow = math.sqrt(low / area)
        fitted = [math.ceil(edge * grow / cell) * cell for edge in size]
    if min(fitted) == cell and math.prod(fitted) > high:
        raise UserError(
            f"the image is too narrow | got {size[0]} x {size[1]} pixels, which are "
            f"{math.prod(fitted)} when it is one token wide, "
            f"expected at most {high} | crop it, or build with a larger --max-pixels"
        )
    return fitted[0], fitted[1]


def _block(mask: np.ndarray) -> tuple[slice, slice]:
    """Return the rectangle that is marked in ``mask``."""
    spans = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    down, across = (slice(span[0], span[-1] + 1) for span in spans)
    return down, across


def _margins(size: Size, canvas: tuple[int, int]) -> tuple[int, int]:
    """Return the lines of tokens above (and below) and columns left (and right) that show only padding.

    Uses sizes in tokens as transformers' ``unpad_image`` does, so tokens that are partly padding stay.
    """
    width, height = size
    rows, columns = canvas
    if width / height > columns / rows:
        return (rows - int(round(height * (columns / width), 7))) // 2, 0
    return 0, (columns - int(round(width * (rows / height), 7))) // 2


def fit_canvas(size: Size, pinpoints: list[list[int]]) -> tuple[int, int]:
    """Return the entry of ``pinpoints`` [height, width] that shows most of the image's pixels.

    Among equal ones it is the smallest.
    """
    width, height = size

    def rank(point: list[int]) -> tuple[int, int]:
        scale = min(point[1] / width, point[0] / height)
        shown = min(int(width * scale) * int(height * scale), width * height)
        return shown, shown - point[0] * point[1]

    best = max(pinpoints, key=rank)
    return best[0], best[1]


def padded(size: Size, canvas: tuple[int, int]) -> tuple[Size, Size]:
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


def split(budget: int, sizes: list[int]) -> list[int]:
    """Split ``budget`` into whole shares in proportion to ``sizes``.

    The budget is at most the sum of the sizes.

    Units left over by rounding go to the largest fractions, among equal ones to the first.
    """
    total = sum(sizes)
    shares = [budget * size // total for size in sizes]
    rest = sorted(range(len(sizes)), key=lambda i: (-(budget * sizes[i] % total), i))
    for i in rest[: budget - sum(shares)]:
        shares[i] += 1
    return shares

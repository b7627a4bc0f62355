"""Layout: the visual tokens of an image, and the order in which the language model reads them.

``images.processor`` makes the layout of an image from its size. It consists of index arrays on the host.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

__all__ = ["Layout", "Size", "single", "split"]

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
        """Return the number of visual tokens, T."""
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

"""Visual tokens of an image as they enter the language model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from foveate.engines.row_gather import Rows
from foveate.runtime.images.token_layout import Layout

__all__ = ["GridPlaces", "VisualTokens"]


class GridPlaces(NamedTuple):
    """Places of R rows in their grids, each int64 [R].

    ``patch`` is the place in the grid's raster, -1 for mixtures and newlines. ``rows`` and ``columns`` are
    the size of that grid.
    """

    patch: np.ndarray
    rows: np.ndarray
    columns: np.ndarray


@dataclass(frozen=True, eq=False)  # two images are the same item only if they are the same object
class VisualTokens:
    """An image before the language model.

    ``tokens`` [R,D], or None if only their number is needed. ``kept`` [R] int64: the image's visual tokens
    that they are, -1 for mixtures. ``layout``: where the visual tokens lie. ``keep``: the image's budget.
    ``owner`` [total] int64: the row that each visual token went into, or None.
    """

    tokens: Rows | None
    kept: np.ndarray
    layout: Layout
    keep: int = 0
    owner: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.kept)

    @property
    def total(self) -> int:
        """Return the image's number of visual tokens before pruning."""
        return self.layout.total

    @property
    def places(self) -> GridPlaces:
        """Return each row's place in its grid."""
        layout, index = self.layout, self.kept.clip(min=0)
        patch = np.where(self.kept < 0, -1, layout.patch[index])
        return GridPlaces(patch, layout.rows[index], layout.columns[index])

    def tokens_of(self, rows: np.ndarray) -> np.ndarray:
        """Return the visual tokens that the ``rows`` int64 [R'] are: int64 [R'], -1 for mixtures."""
        return np.where(rows < 0, -1, self.kept[rows])

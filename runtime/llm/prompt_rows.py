"""Facts about the rows of a prompt: which image each row belongs to, its place there, and its position."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np

from foveate.runtime.llm.budget import Points, stage_keep
from foveate.runtime.llm.prompt_items import Item
from foveate.runtime.llm.visual_tokens import VisualTokens

__all__ = ["PromptRows"]


@dataclass(frozen=True, eq=False)
class PromptRows:
    """Facts about ``T`` rows that are computed together, each int64 [T].

    ``image``: number of the row's image among the images of these rows, -1 for text. ``source``: index of
    the row among its image's rows, -1 for text and mixtures. ``patch``: place of the row in its grid, -1 for
    text, mixtures and newlines. ``rows``, ``columns``: size of that grid, 1 for rows without one.
    ``entered``, ``total``, ``keep``: the image's number of rows on entering, its number of visual tokens, and
    its budget; 0 for text. ``positions``: position ids, with M-RoPE [3, T].
    """

    image: np.ndarray
    source: np.ndarray
    patch: np.ndarray
    rows: np.ndarray
    columns: np.ndarray
    entered: np.ndarray
    total: np.ndarray
    keep: np.ndarray
    positions: np.ndarray

    @classmethod
    def of(cls, items: Sequence[Item], positions: np.ndarray) -> PromptRows:
        """Return the facts about the rows of ``items`` before any in-LLM pruner."""
        images = 0
        facts: list[dict[str, np.ndarray]] = []
        for item in items:
            if isinstance(item, VisualTokens):
                facts.append(_of_image(item, images))
                images += 1
            else:
                facts.append(_TEXT)
        columns = {name: np.concatenate([each[name] for each in facts]).astype(np.int64) for name in _TEXT}
        return cls(**columns, positions=positions)

    def __len__(self) -> int:
        return len(self.image)

    def feeds(self, points: Points) -> dict[str, np.ndarray]:
        """Return the inputs that a pruner may read, [1,T] each (position ids of M-RoPE [3,1,T]).

        ``points`` turn the user's budget into the stage's own.
        """
        asked = list(zip(self.keep.tolist(), self.total.tolist(), strict=True))
        given = {pair: stage_keep(points, *pair) for pair in set(asked)}
        columns = {
            "image": self.image,
            "patch": self.patch,
            "rows": self.rows,
            "columns": self.columns,
            "entered": self.entered,
            "position_ids": self.positions,
            "keep": np.array([given[pair] for pair in asked], np.int64),
        }
        return {name: column[..., None, :] for name, column in columns.items()}

    def take(self, kept: np.ndarray) -> PromptRows:
        """Return the facts about the rows ``kept`` int64 [R].

        A mixture (-1) gets the facts of the row before it.
        """
        mixed = kept < 0
        where = np.where(mixed, np.maximum.accumulate(kept), kept).clip(min=0)
        taken = {field.name: getattr(self, field.name)[..., where] for field in fields(self)}
        for name in ("source", "patch"):
            taken[name] = np.where(mixed, -1, taken[name])
        return PromptRows(**taken)

    def sources(self, images: int) -> list[np.ndarray]:
        """Return for each of the ``images`` the indices int64 [R] of its rows that are left."""
        return [self.source[self.image == number] for number in range(images)]


_TEXT = {
    "image": np.array([-1]),
    "source": np.array([-1]),
    "patch": np.array([-1]),
    "rows": np.array([1]),
    "columns": np.array([1]),
    "entered": np.array([0]),
    "total": np.array([0]),
    "keep": np.array([0]),
}
"""Facts about one row of text."""


def _of_image(visual: VisualTokens, number: int) -> dict[str, np.ndarray]:
    """Return the facts about the rows of image ``number``."""
    count, places = len(visual), visual.places
    return {
        "image": np.full(count, number),
        "source": np.arange(count),
        "patch": places.patch,
        "rows": places.rows,
        "columns": places.columns,
        "entered": np.full(count, count),
        "total": np.full(count, visual.total),
        "keep": np.full(count, visual.keep),
    }

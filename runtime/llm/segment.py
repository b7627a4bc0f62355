"""A part of the language model: its engine with a cache of its own, and the pruner that stands behind it.

Rows go from segment to segment where the engines computed them. What is known of each row (its picture, its place in
it, its position) stays on the host as a ``Chunk`` and is shortened along with them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

import numpy as np

from foveate.engines.engine import Buffer, Engine, Feed
from foveate.engines.row_gather import Rows
from foveate.runtime.llm.budget import Points, stage_keep
from foveate.runtime.llm.kv_cache import KVCache

__all__ = ["Chunk", "Segment"]


@dataclass(frozen=True)
class Chunk:
    """What is known of ``T`` rows that are computed together, each int64 [T].

    ``picture``: number of the row's picture among those of the chunk, -1 for text. ``source``: the row's index among its
    picture's, -1 for text and for mixtures. ``patch``: its place in its grid, likewise and for newlines. ``rows``, ``columns``:
    that grid; 1 where there is none. ``entered``, ``total``, ``keep``: rows that the picture had on entering, its tokens, and the
    budget asked for; 0 for text. ``positions``; M-RoPE: [3, T].
    """

    picture: np.ndarray
    source: np.ndarray
    patch: np.ndarray
    rows: np.ndarray
    columns: np.ndarray
    entered: np.ndarray
    total: np.ndarray
    keep: np.ndarray
    positions: np.ndarray

    def __len__(self) -> int:
        return len(self.picture)

    def feeds(self, points: Points) -> dict[str, np.ndarray]:
        """What a pruner may read of it, [1,T] each (positions of M-RoPE [3,1,T]); ``points`` turn the budget asked for into the stage's own."""
        asked = list(zip(self.keep.tolist(), self.total.tolist(), strict=True))
        given = {pair: stage_keep(points, *pair) for pair in set(asked)}
        columns = {
            "picture": self.picture,
            "patch": self.patch,
            "rows": self.rows,
            "columns": self.columns,
            "entered": self.entered,
            "position_ids": self.positions,
            "keep": np.array([given[pair] for pair in asked], np.int64),
        }
        return {name: column[..., None, :] for name, column in columns.items()}

    def take(self, kept: np.ndarray) -> Chunk:
        """The rows ``kept`` int64 [R]; a mixture (-1) stands with the row before it."""
        mixed = kept < 0
        where = np.where(mixed, np.maximum.accumulate(kept), kept).clip(min=0)
        taken = {field.name: getattr(self, field.name)[..., where] for field in fields(self)}
        for name in ("source", "patch"):
            taken[name] = np.where(mixed, -1, taken[name])
        return Chunk(**taken)


class Segment:
    """``pruner`` is None where all rows go on, and behind the last segment. ``depth``: how many pruners stand before it.
    ``renumbers``: positions are those of the rows in this cache."""

    def __init__(
        self,
        engine: Engine,
        pruner: Engine | None = None,
        points: Points = (),
        depth: int = 0,
        renumbers: bool = False,
    ) -> None:
        self.engine, self.cache, self.depth = engine, KVCache(engine), depth
        self.pruner, self._points, self._renumbers = pruner, points, renumbers
        self._rows_name = engine.spec.inputs[0].name
        self._last = any(tensor.name == "last" for tensor in engine.spec.inputs)

    def places(self, positions: np.ndarray) -> np.ndarray:
        """Where rows at ``positions [T]`` (M-RoPE: [3, T]) stand here, behind what is cached: there, or where this segment counts them."""
        start = self.cache.length
        return np.arange(start, start + len(positions)) if self._renumbers else positions

    def gather(self, rows: Rows) -> Feed:
        """``rows [T,D]`` as ``run`` takes them."""
        return self.engine.gather(self._rows_name, rows)

    def run(self, rows: Feed, positions: np.ndarray) -> dict[str, Buffer]:
        """``rows [1,T,D]`` behind what is cached, at ``places(positions)``."""
        count = rows.shape[1]
        feeds = {
            self._rows_name: rows,
            "position_ids": self.places(positions)[..., None, :],
            "write_index": np.array([self.cache.length], np.int64),
            **({"last": np.array([count - 1], np.int64)} if self._last else {}),
            **self.cache.feeds(),
        }
        outputs = self.engine.run(feeds)
        self.cache.length += count
        return outputs

    def prune(
        self,
        given: Mapping[str, Feed],
        chunk: Chunk,
        carried: Mapping[str, Buffer],
    ) -> tuple[Buffer, Chunk, dict[str, Buffer]]:
        """The rows that go on: ``[1,R,D]``, what is known of them, and what their pruner hands to the next one.

        ``given``: ``hidden``, ``scored`` and ``inputs_embeds`` of the rows, see ``export.inside``.
        """
        known = {
            **given,
            **chunk.feeds(self._points),
            **{f"carried.{name}": value for name, value in carried.items()},
        }
        found = self.pruner.run({tensor.name: known[tensor.name] for tensor in self.pruner.spec.inputs})
        count = int(found["count"].numpy()[0])
        hand = {
            name.removeprefix("carry."): value.head(count)
            for name, value in found.items()
            if name.startswith("carry.")
        }
        return found["tokens"].head(count), chunk.take(found["kept"].numpy()[0, :count]), hand

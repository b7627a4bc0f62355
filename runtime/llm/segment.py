"""A segment of the language model: its engine with a kv cache of its own, and the in-LLM pruner after it.

Rows stay where the engines computed them on their way from segment to segment. Facts about each row (its
image, its place in the image, its position) stay on the host as a ``Chunk``, which is shortened along with
the rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

import numpy as np

from foveate.engines.buffer import Buffer, Feed
from foveate.engines.engine import Engine
from foveate.engines.row_gather import Rows
from foveate.runtime.llm.budget import Points, stage_keep
from foveate.runtime.llm.kv_cache import KVCache

__all__ = ["Chunk", "Segment"]


@dataclass(frozen=True)
class Chunk:
    """Facts about ``T`` rows that are computed together, each int64 [T].

    ``image``: number of the row's image among the images of the chunk, -1 for text. ``source``: index of
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

    def take(self, kept: np.ndarray) -> Chunk:
        """Return the facts about the rows ``kept`` int64 [R].

        A mixture (-1) gets the facts of the row before it.
        """
        mixed = kept < 0
        where = np.where(mixed, np.maximum.accumulate(kept), kept).clip(min=0)
        taken = {field.name: getattr(self, field.name)[..., where] for field in fields(self)}
        for name in ("source", "patch"):
            taken[name] = np.where(mixed, -1, taken[name])
        return Chunk(**taken)


class Segment:
    """One segment at work.

    ``pruner`` is None if all rows go on, as after the last segment. ``depth`` is the number of pruners before
    the segment. ``renumbers`` says that position ids count the rows in this segment's cache.
    """

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
        """Return position ids in this segment: unchanged, or continuing the cache if ``renumbers``.

        ``positions`` is [T], with M-RoPE [3, T].
        """
        start = self.cache.length
        return np.arange(start, start + len(positions)) if self._renumbers else positions

    def gather(self, rows: Rows) -> Feed:
        """Return ``rows [T,D]`` in the form that ``run`` takes."""
        return self.engine.gather(self._rows_name, rows)

    def run(self, rows: Feed, positions: np.ndarray) -> dict[str, Buffer]:
        """Compute ``rows [1,T,D]`` at ``places(positions)``, after those in the cache.

        Return the engine's outputs.
        """
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
        """Run the pruner.

        Return the rows that go on ``[1,R,D]``, the facts about them, and values for the next pruner.

        ``given`` holds ``hidden``, ``scored`` and ``inputs_embeds`` of the rows (see
        ``export.pruning.in_llm``).
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

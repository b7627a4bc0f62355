"""A segment of the language model: its engine with a kv cache of its own, and the in-LLM pruner after it.

Rows stay where the engines computed them on their way from segment to segment. Facts about each row (its
image, its place in the image, its position) stay on the host as ``PromptRows``, which is shortened along with
the rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from foveate.engines.buffer import Buffer, Feed
from foveate.engines.engine import Engine
from foveate.engines.row_gather import Rows
from foveate.runtime.llm.budget import Points
from foveate.runtime.llm.kv_cache import KVCache
from foveate.runtime.llm.prompt_rows import PromptRows

__all__ = ["Pruned", "Segment"]


class Pruned(NamedTuple):
    """Rows that a pruner left.

    ``rows`` [1,R,D] go on. ``facts`` are about them. ``carried`` are values for the next pruner, by name.
    """

    rows: Buffer
    facts: PromptRows
    carried: dict[str, Buffer]


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

    def run(self, rows: Feed, positions: np.ndarray) -> Mapping[str, Buffer]:
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

    def prune(self, given: Mapping[str, Feed], facts: PromptRows, carried: Mapping[str, Feed]) -> Pruned:
        """Run the pruner.

        ``given`` holds ``hidden``, ``scored`` and ``inputs_embeds`` of the rows (see
        ``export.pruning.in_llm``). ``facts`` are about them. ``carried`` are those of the pruner before.
        """
        assert self.pruner is not None  # the caller asks only segments that have one
        known = {
            **given,
            **facts.feeds(self._points),
            **{f"carried.{name}": value for name, value in carried.items()},
        }
        found = self.pruner.run({tensor.name: known[tensor.name] for tensor in self.pruner.spec.inputs})
        count = int(found["count"].numpy()[0])
        hand = {
            name.removeprefix("carry."): value.head(count)
            for name, value in found.items()
            if name.startswith("carry.")
        }
        return Pruned(found["tokens"].head(count), facts.take(found["kept"].numpy()[0, :count]), hand)

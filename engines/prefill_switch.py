"""One graph compiled twice: one engine for many new rows (prefill), another for few (decode).

Both engines share every buffer. Matrix products with many rows are bound by arithmetic, products with one row
by reading the weights. So prefill wants the weights in the form that multiplies fastest (int8), and decode
wants the smallest form (int4).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from foveate.engines.buffer import Buffer, Feed
from foveate.engines.engine import Engine
from foveate.engines.row_gather import Rows
from foveate.engines.spec import GraphSpec

__all__ = ["MANY", "ByRows"]

MANY = 8
"""Smallest number of new rows for which the engine for many rows runs.

On an AVX2 machine int8 products are as fast as int4 ones at 4 rows, and 1.3 times as fast at 8
(docs/measurements/cpu-speed.md)."""


class ByRows:
    """An ``Engine`` that runs ``many`` for at least ``MANY`` new rows and ``few`` otherwise.

    Both compute the same graph on the same device. The number of new rows is axis 1 of the graph's first
    input.
    """

    def __init__(self, few: Engine, many: Engine) -> None:
        self._few, self._many = few, many
        self._rows = few.spec.inputs[0].name

    @property
    def spec(self) -> GraphSpec:
        """Spec of the graph, the same for both engines."""
        return self._few.spec

    def allocate(self, name: str, sizes: Mapping[str, int], content: np.ndarray | None = None) -> Buffer:
        """Return a buffer that both engines can use. See ``Engine.allocate``."""
        return self._few.allocate(name, sizes, content)

    def gather(self, name: str, rows: Rows) -> Feed:
        """Return ``rows`` as an input of both engines. See ``Engine.gather``."""
        return self._few.gather(name, rows)

    def run(self, feeds: Mapping[str, Feed]) -> Mapping[str, Buffer]:
        """Run the engine that is the faster one for this number of new rows. See ``Engine.run``."""
        many = self._rows in feeds and feeds[self._rows].shape[1] >= MANY
        return (self._many if many else self._few).run(feeds)

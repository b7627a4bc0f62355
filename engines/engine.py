"""The interface of an engine: one compiled graph.

It takes named arrays or buffers and returns named buffers. Buffers live where the engine computes, so one
graph's output can be the next graph's input without a copy through the host.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import numpy as np

from foveate.engines.buffer import Buffer, Feed, host
from foveate.engines.row_gather import Rows
from foveate.engines.spec import GraphSpec, Symbol

__all__ = ["Engine", "check_feeds", "resolve"]


class Engine(Protocol):
    """A compiled graph. Not safe for concurrent use."""

    @property
    def spec(self) -> GraphSpec:
        """Typed spec of the graph as compiled. A symbol that was fixed when compiling is an ``int`` here."""
        ...

    def allocate(self, name: str, sizes: Mapping[str, int], content: np.ndarray | None = None) -> Buffer:
        """Return a zeroed buffer for the input ``name``, with the symbols in its shape set by ``sizes``.

        ``content`` is copied to its start. It has the rank of the input and fits it in every dimension.
        """
        ...

    def gather(self, name: str, rows: Rows) -> Feed:
        """Return ``rows [R,...]`` as the input ``name [1,R,...]``, in memory of its own.

        Rows that are on the device already are copied there and do not pass through the host. Rows on the
        host are cast to the input's dtype. Raises ValueError if rows on the device have another dtype.
        """
        ...

    def run(self, feeds: Mapping[str, Feed]) -> Mapping[str, Buffer]:
        """Run the graph and return every output by name.

        An output that the spec writes in place is the buffer that was fed. Raises ValueError, before anything
        is launched, if the feeds do not fit the spec.
        """
        ...


def check_feeds(spec: GraphSpec, feeds: Mapping[str, Feed]) -> None:
    """Raise ValueError if shapes, dtypes or the values of shape inputs do not fit ``spec``."""
    spec.check(
        {name: tuple(feed.shape) for name, feed in feeds.items()},
        {name: str(feed.dtype) for name, feed in feeds.items()},
    )
    for tensor in spec.inputs:
        if tensor.value is None:
            continue
        got = int(host(feeds[tensor.name]))
        if not tensor.value.min <= got <= tensor.value.max:
            raise ValueError(
                f"{spec.name}: input {tensor.name} is {got} | expected {tensor.value.min}..{tensor.value.max}"
            )


def resolve(spec: GraphSpec, name: str, sizes: Mapping[str, int]) -> tuple[int, ...]:
    """Return the shape of the input ``name`` with its symbols set by ``sizes``."""
    return tuple(sizes[d.name] if isinstance(d, Symbol) else d for d in spec.input(name).shape)

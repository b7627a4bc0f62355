"""Tensors that are passed to an engine and returned by it: arrays on the host, or buffers on a device."""

from __future__ import annotations

from typing import Protocol

import numpy as np

__all__ = ["Buffer", "Feed", "host"]


class Buffer(Protocol):
    """A tensor in the memory of the device that the engine runs on."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the tensor."""
        ...

    @property
    def dtype(self) -> str:
        """NumPy name of the dtype."""
        ...

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        ...

    @property
    def on_host(self) -> bool:
        """True if the memory is the host's, so that ``numpy`` copies nothing."""
        ...

    def head(self, rows: int) -> Buffer:
        """Return the first ``rows`` along axis 1 as a buffer over the same memory.

        Axis 0 must have one entry. Raises ValueError.
        """
        ...

    def numpy(self) -> np.ndarray:
        """Return the content on the host: a view if the memory is the host's, else a copy.

        Do not write to it.
        """
        ...


Feed = np.ndarray | Buffer


def host(feed: Feed) -> np.ndarray:
    """Return the content of ``feed`` on the host."""
    return feed if isinstance(feed, np.ndarray) else feed.numpy()

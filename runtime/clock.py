"""Clock: the seconds that an answer spends in each stage."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["Clock"]


class Clock:
    """Seconds spent in each stage, and since the clock was made."""

    def __init__(self) -> None:
        self._start = time.perf_counter()
        self.seconds = {"preprocess": 0.0, "vision": 0.0, "prune": 0.0, "prefill": 0.0, "decode": 0.0}

    @contextmanager
    def measure(self, stage: str) -> Iterator[None]:
        """Add the seconds of a ``with`` block to those of ``stage``."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] += time.perf_counter() - start

    @property
    def elapsed(self) -> float:
        """Return the seconds since the clock was made."""
        return time.perf_counter() - self._start

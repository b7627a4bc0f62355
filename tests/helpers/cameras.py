"""A camera that plays what a test says, and video files."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

SIDE = 16


def pixels(number: int) -> np.ndarray:
    return np.full((SIDE, SIDE, 3), number % 256, np.uint8)


class Fake:
    """A source from lists: each opening plays the next list.

    An exception in a list is raised, and a number is waited for in seconds.
    """

    name, live = "camera 0", True

    def __init__(self, *openings: list, live: bool = True) -> None:
        self.openings = list(openings)
        self.opened = 0
        self.live = live
        self.shown = threading.Event()  # set when everything was played

    @contextlib.contextmanager
    def open(self) -> Iterator[Iterator[tuple[float, np.ndarray]]]:
        self.opened += 1
        if not self.openings:
            self.shown.set()
            raise OSError("cannot be opened")
        opening = self.openings.pop(0)
        if isinstance(opening, OSError):
            raise opening
        yield self._play(opening)

    def _play(self, opening: list) -> Iterator[tuple[float, np.ndarray]]:
        for what in opening:
            if isinstance(what, Exception):
                raise what
            if isinstance(what, float):
                time.sleep(what)
            else:
                yield what if isinstance(what, tuple) else (0.0, pixels(what))


def write_clip(path: Path, frames: int, rate: float, size: tuple[int, int], step: int) -> Path:
    """Write a video of ``size`` (width, height). The grey level of a frame is its number times ``step``."""
    cv2 = pytest.importorskip("cv2")
    out = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), rate, size)
    for number in range(frames):
        out.write(np.full((size[1], size[0], 3), step * number, np.uint8))
    out.release()
    return path

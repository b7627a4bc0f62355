"""The newest frame of a camera. A thread reads frames, and a slot holds the last one.

Input: a source, whose frames the thread reads. Output: ``Frame``. Frames that nobody took in time are dropped
and counted, so memory is that of one frame. A source that gives no frame at the start is an error. One that
is lost later is opened again, after pauses that grow to ``MOST_PAUSE`` seconds. Frames from before the loss
are not handed out after it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from foveate.engines.errors import UserError

__all__ = ["Frame", "Reader", "Source"]

MOST_PAUSE = 10.0
_FIRST_PAUSE = 0.5


class Source(Protocol):
    """A source of frames. A ``live`` source is opened again if it is lost; others (files) end."""

    name: str
    live: bool

    def open(self) -> AbstractContextManager[Iterator[tuple[float, np.ndarray]]]:
        """Open the source and yield its frames: (seconds since the first frame, uint8 [H,W,3] RGB).

        The seconds follow the source's own clock. Raises OSError if the source is missing, at once or later.
        """
        ...


@dataclass(frozen=True)
class Frame:
    """A frame.

    ``number`` counts frames read, from 1. ``taken`` is the ``time.monotonic`` at which it was read.
    """

    number: int
    taken: float
    pixels: np.ndarray

    @property
    def age(self) -> float:
        """Return the seconds since the frame was read."""
        return time.monotonic() - self.taken


class Reader:
    """Reads ``source`` in a thread during a ``with`` block.

    ``say`` gets a line when it is lost and when it is back.
    """

    def __init__(self, source: Source, say: Callable[[str], None] = lambda line: None) -> None:
        self._source = source
        self._say = say
        self._slot = threading.Condition()
        self._newest: Frame | None = None
        self._ended = False
        self._error: BaseException | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name="frames")
        self.read = 0

    def __enter__(self) -> Reader:  # noqa: PYI034  Self is newer than Python 3.10
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        """Stop.

        Waits two seconds for the thread: one that hangs in a dead network stream ends with the process.
        """
        self._stop.set()
        self._thread.join(timeout=2)

    @property
    def ended(self) -> bool:
        """Return whether a file has ended and its last frame was taken.

        Raises the error that ended the thread: UserError if a camera gave no frame at the start.
        """
        with self._slot:
            if self._error is not None:
                raise self._error
            return self._ended and self._newest is None

    def take(self, timeout: float) -> Frame | None:
        """Return the newest frame that was not taken yet, after at most ``timeout`` seconds.

        None: there is none.
        """
        with self._slot:
            self._slot.wait_for(lambda: self._newest is not None or self._ended, timeout)
            frame, self._newest = self._newest, None
            return frame

    def _run(self) -> None:
        try:
            self._read_on()
        except BaseException as error:  # noqa: BLE001  the thread that waits for frames raises it
            self._error = error
        finally:
            with self._slot:
                self._ended = True
                self._slot.notify_all()

    def _read_on(self) -> None:
        pause, lost = _FIRST_PAUSE, False
        while not self._stop.is_set():
            start = None
            try:
                with self._source.open() as frames:
                    for due, pixels in frames:
                        start = time.monotonic() - due if start is None else start
                        if not self._wait_for(start + due):
                            return
                        if lost:
                            self._say(f"{self._source.name} is back")
                        lost, pause = False, _FIRST_PAUSE
                        self._put(pixels)
                why = "it ended" if self.read else "it gives no frame"
            except OSError as error:
                why = str(error)
                if not self._source.live:
                    raise
            if not self._source.live or self._stop.is_set():
                return
            if not self.read:
                raise UserError(
                    f"cannot watch {self._source.name} | {why} | connect it, or choose another --camera"
                )
            self._drop()
            if not lost:
                self._say(f"{self._source.name} is lost: {why}; trying again until it is back")
            lost = True
            self._stop.wait(pause)
            pause = min(2 * pause, MOST_PAUSE)

    def _wait_for(self, due: float) -> bool:
        """Wait until a file's frame is due; a camera keeps its own time.

        Return False if the reader was stopped.
        """
        return not self._stop.wait(0.0 if self._source.live else max(0.0, due - time.monotonic()))

    def _put(self, pixels: np.ndarray) -> None:
        with self._slot:
            self.read += 1
            self._newest = Frame(self.read, time.monotonic(), pixels)
            self._slot.notify_all()

    def _drop(self) -> None:
        with self._slot:
            self._newest = None

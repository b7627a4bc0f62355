"""SIGTERM, which stops services and containers: a verb cleans up and ends with exit code 143.

Linux ignores SIGTERM for process 1 unless it has a handler, and in a container a verb is process 1. The
handler raises SystemExit in the main thread, so that ``finally`` and ``with`` blocks run. A main thread that
stays inside a library call for longer than a few seconds is ended at once. That is safe, since files are
written in a way that survives a kill.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType

__all__ = ["TERMINATED", "handled_elsewhere", "terminable"]

_elsewhere: list[None] = []
_terminated = threading.Event()
TERMINATED = 128 + signal.SIGTERM
_GRACE = 5.0  # seconds; `docker stop` kills after 10


@contextlib.contextmanager
def terminable() -> Iterator[None]:
    """Make SIGTERM raise ``SystemExit(143)`` during the block, and end the process after ``_GRACE`` seconds.

    Does nothing outside the main thread, or if SIGTERM already has a handler.
    """
    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    ended = threading.Event()
    read, write = os.pipe()
    os.set_blocking(write, False)
    # Python writes the signal's number to this pipe at once, even while the main thread is busy
    before = signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    signal.signal(signal.SIGTERM, _raise)
    threading.Thread(target=_watch, args=(read, ended), daemon=True).start()
    _terminated.clear()
    try:
        yield
    except BaseException:
        # a library may have caught SystemExit and failed in its own way because of it
        if _terminated.is_set():
            raise SystemExit(TERMINATED) from None
        raise
    finally:
        ended.set()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.set_wakeup_fd(before)
        os.close(write)


@contextlib.contextmanager
def handled_elsewhere() -> Iterator[None]:
    """Switch off the time limit during the block, because the caller handles SIGTERM itself."""
    _elsewhere.append(None)
    try:
        yield
    finally:
        _elsewhere.pop()


def _raise(number: int, frame: FrameType | None) -> None:
    _terminated.set()
    raise SystemExit(TERMINATED)


def _watch(read: int, ended: threading.Event) -> None:
    while numbers := os.read(read, 64):
        if signal.SIGTERM in numbers and not _elsewhere and not ended.wait(_GRACE):
            os._exit(TERMINATED)
    os.close(read)

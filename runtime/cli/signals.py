"""SIGTERM, which stops services and containers: a verb cleans up and ends with exit code 143.

Without a handler Linux ignores SIGTERM for process 1, which a verb is in a container. The handler raises
SystemExit in the main thread, so that ``finally`` and ``with`` do their work. A main thread that is busy
in a library for longer than a few seconds is not waited for: what a verb writes is safe against being
killed.
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
    """During the block SIGTERM raises ``SystemExit(143)``, and ends the process when it has not ended within
    seconds.

    Only in the main thread, and where nobody else handles SIGTERM; elsewhere the block runs as it is.
    """
    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    ended = threading.Event()
    read, write = os.pipe()
    os.set_blocking(write, False)
    # Python writes the number of a signal there at once, even while the main thread is busy
    before = signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    signal.signal(signal.SIGTERM, _raise)
    threading.Thread(target=_watch, args=(read, ended), daemon=True).start()
    _terminated.clear()
    try:
        yield
    except BaseException:
        if _terminated.is_set():  # a library may have caught SystemExit, and failed of it in its own way
            raise SystemExit(TERMINATED) from None
        raise
    finally:
        ended.set()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.set_wakeup_fd(before)
        os.close(write)


@contextlib.contextmanager
def handled_elsewhere() -> Iterator[None]:
    """During the block the caller has a handler of its own for SIGTERM, and takes the time that it needs."""
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

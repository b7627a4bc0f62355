"""Child processes that do one piece of work. They end when the process that started them ends."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

__all__ = ["end_with"]

_PR_SET_PDEATHSIG = 1


def end_with(parent: int) -> None:
    """Have this process killed when its parent ends, in whatever way. ``parent`` is the parent's process id.

    A compiler whose parent was killed would otherwise run on for minutes and write into a folder that nobody
    waits for. This works on Linux only; elsewhere nothing is done.
    """
    if sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # the parent ended before prctl was called
        os._exit(1)

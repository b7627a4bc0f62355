"""Processes that we start for one piece of work: they end with the one that started them."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

__all__ = ["end_with"]

_PR_SET_PDEATHSIG = 1


def end_with(parent: int) -> None:
    """Have this process killed when ``parent``, the id of the one that started it, ends, however that ends.

    A compiler whose parent was killed would go on for minutes and write into a folder that nobody waits
    for. On Linux alone.
    """
    if sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before
        os._exit(1)

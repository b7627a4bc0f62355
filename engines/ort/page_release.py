"""Pages of a mapped file that will not be read again need not stay in memory."""

from __future__ import annotations

import ctypes
import mmap
import re
from pathlib import Path

__all__ = ["release"]

_MAPS = Path("/proc/self/smaps")


def release(file: Path, most: int) -> None:
    """Take what is mapped of ``file`` in pieces of at most ``most`` bytes out of this process' memory; what is read again comes
    back from the page cache.

    Loading an engine touches all that it maps, scales of int4 weights too, which stand in the prepacked weights once more.
    Pieces that were written to are left alone, and so is everything on systems that do not tell what is mapped.
    """
    try:
        maps = _MAPS.read_text("utf-8", "surrogateescape")
    except OSError:
        return
    advise = ctypes.CDLL(None).madvise
    advise.argtypes = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
    name = re.escape(str(file.resolve()))
    mapping = rf"^([0-9a-f]+)-([0-9a-f]+) .* {name}\n(?:\w+: .*\n)*?Anonymous: +(\d+) kB$"
    for found in re.finditer(mapping, maps, re.MULTILINE):
        start, end, own = int(found[1], 16), int(found[2], 16), int(found[3])
        if not own and end - start <= most:
            advise(start, end - start, mmap.MADV_DONTNEED)

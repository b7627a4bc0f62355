"""Releases resident pages of a mapped file that are not needed any more."""

from __future__ import annotations

import ctypes
import mmap
import re
from pathlib import Path

__all__ = ["release"]

_MAPS = Path("/proc/self/smaps")


def release(file: Path, most: int) -> None:
    """Drop this process's resident pages of ``file`` with madvise DONTNEED.

    Mappings of more than ``most`` bytes are left alone.

    A later read brings a page back from the page cache. Loading an engine touches everything that it maps,
    also the scales of int4 weights, although the prepacked weights contain them too. Mappings that were
    written to are left alone. Nothing is done on systems without ``/proc/self/smaps``.
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

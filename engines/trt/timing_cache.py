"""Files of TensorRT's caches, timings and kernels: the SHA-256 of the cache, and behind it the cache.

The hash is ours, since TensorRT-RTX accepts a damaged cache without an error.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from foveate.engines.disk.files import atomic_file

__all__ = ["attach", "content", "put", "write"]

_DIGEST = 32  # bytes of a SHA-256


def attach(config: Any, file: Path | None, notes: list[str]) -> Any:
    """Attach and return the timing cache.

    It is new if the file is missing, damaged, or of another GPU or version.
    """
    if file is None:
        return None
    known = content(file)
    if known:
        cache = config.create_timing_cache(known)
        if cache is not None and config.set_timing_cache(cache, ignore_mismatch=False):
            return cache
        notes.append(f"the timing cache {file.name} is of another machine: begun anew")
    elif known is None:
        notes.append(f"the timing cache {file.name} is damaged: begun anew")
    cache = config.create_timing_cache(b"")
    if cache is None or not config.set_timing_cache(cache, ignore_mismatch=False):
        notes.append("TensorRT takes no timing cache: builds will not get faster")
        return None
    return cache


def content(file: Path) -> bytes | None:
    """Return the cache in ``file``: empty if there is none, None if it does not match its SHA-256."""
    try:
        data = file.read_bytes()
    except OSError:
        return b""
    digest, found = data[:_DIGEST], data[_DIGEST:]
    return found if hashlib.sha256(found).digest() == digest else None


def write(cache: Any, file: Path) -> None:
    """Write the timing cache to ``file``. Raises OSError."""
    put(bytes(cache.serialize()), file)


def put(found: bytes, file: Path) -> None:
    """Write the bytes of a cache to ``file``, as ``content`` reads them. Raises OSError."""
    with atomic_file(file) as part:
        part.write_bytes(hashlib.sha256(found).digest() + found)

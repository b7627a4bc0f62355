"""The file of TensorRT's timing cache: the SHA-256 of the cache, and behind it the cache.

The hash is ours, since TensorRT-RTX accepts a damaged cache without an error.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from foveate.engines.disk.files import atomic_file

__all__ = ["attach", "write"]

_DIGEST = 32  # bytes of a SHA-256


def attach(config: Any, file: Path | None, notes: list[str]) -> Any:
    """Attach and return the timing cache.

    It is new if the file is missing, damaged, or of another GPU or version.
    """
    if file is None:
        return None
    if content := _checked(file, notes):
        cache = config.create_timing_cache(content)
        if cache is not None and config.set_timing_cache(cache, ignore_mismatch=False):
            return cache
        notes.append(f"the timing cache {file.name} is of another machine: begun anew")
    cache = config.create_timing_cache(b"")
    config.set_timing_cache(cache, ignore_mismatch=False)
    return cache


def _checked(file: Path, notes: list[str]) -> bytes:
    """Return the content behind the SHA-256 in ``file``, or ``b""`` if they do not match.

    TensorRT-RTX accepts a damaged cache without an error.
    """
    if not file.is_file():
        return b""
    content = file.read_bytes()
    digest, content = content[:_DIGEST], content[_DIGEST:]
    if hashlib.sha256(content).digest() == digest:
        return content
    notes.append(f"the timing cache {file.name} is damaged: begun anew")
    return b""


def write(cache: Any, file: Path) -> None:
    """Write the timing cache to ``file``."""
    content = bytes(cache.serialize())
    with atomic_file(file) as part:
        part.write_bytes(hashlib.sha256(content).digest() + content)

"""Checks that files are unchanged, without hashing large ones each time.

Sizes, and the SHA-256 of small files, are checked every time. A large file is hashed once. Then its stamp
(size, time of the last change, inode) is stored, and it is hashed again only if the stamp differs. Only a
full check finds a change that keeps the stamp. If stamps cannot be stored, as on read-only storage, large
files are hashed every time.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from foveate.engines.disk import files
from foveate.runtime.bundle.manifest import StoredFile

__all__ = ["Fault", "first_fault", "remember"]

_SMALL = 1 << 20  # bytes; hashing this many takes about a millisecond


@dataclass(frozen=True)
class Fault:
    """A file that is missing or changed. ``words`` says how it changed, None if it is missing."""

    name: str
    words: str | None


def first_fault(
    root: Path,
    expected: Mapping[str, StoredFile],
    stamps_file: Path,
    *,
    full: bool = False,
    progress: Callable[[str], None] | None = None,
) -> Fault | None:
    """Return the first file that is missing or changed, or None.

    ``expected`` has the files by their paths in ``root``. ``full`` hashes every file
    whatever its stamp. ``progress`` gets the name of each large file before it is hashed.
    """
    known = {} if full else _read(stamps_file)
    fresh: dict[str, list[int]] = {}
    for name, entry in expected.items():
        path = root / name
        if not path.is_file():
            return Fault(name, None)
        stamp = _stamp(path)
        if stamp[0] != entry.size:
            return Fault(name, f"got {stamp[0]} bytes, expected {entry.size}")
        small = stamp[0] <= _SMALL
        if small or known.get(name) != stamp:
            if progress and not small:
                progress(name)
            if (got := files.sha256(path)) != entry.sha256:
                return Fault(name, files.difference(got, entry.sha256))
        if not small:
            fresh[name] = stamp
    if fresh != known:
        _write(stamps_file, fresh)
    return None


def remember(root: Path, names: Mapping[str, object], stamps_file: Path) -> None:
    """Store the stamps of files that were hashed just now."""
    stamps = {name: _stamp(root / name) for name in names}
    _write(stamps_file, {name: stamp for name, stamp in stamps.items() if stamp[0] > _SMALL})


def _stamp(path: Path) -> list[int]:
    status = path.stat()
    return [status.st_size, status.st_mtime_ns, status.st_ino]


def _read(file: Path) -> dict[str, list[int]]:
    try:
        stamps = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # no stamps yet, or cut short by a power failure: hash again
        return {}
    return stamps if isinstance(stamps, dict) else {}


def _write(file: Path, stamps: dict[str, list[int]]) -> None:
    with contextlib.suppress(OSError):  # read-only storage: the next check hashes again
        file.parent.mkdir(exist_ok=True)
        with files.atomic_file(file) as part:
            part.write_text(json.dumps(stamps), encoding="utf-8")

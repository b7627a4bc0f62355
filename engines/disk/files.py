"""Files and folders that stand under their final name whole or not at all: written aside, flushed to the
disk, renamed.

A process that is killed half-way leaves a hidden temporary file beside the final name. The next writer of
the same file removes it. A power failure at any moment leaves the old content or the new one.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import hashlib
import os
import re
import secrets
import sys
from collections.abc import Iterator
from pathlib import Path

from foveate.engines.disk import locks

__all__ = ["atomic_file", "difference", "flush", "flush_folder", "put_folder", "sha256"]

_HASH_PART = 12  # hexadecimal digits of a hash that are shown
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def difference(got: str, expected: str) -> str:
    """Two different hashes in words, by the digits where they begin to differ."""
    same = next((i for i, pair in enumerate(zip(got, expected, strict=False)) if pair[0] != pair[1]), 0)
    start = same // _HASH_PART * _HASH_PART
    end = start + _HASH_PART
    where = f" from digit {start + 1} on" if start else ""
    return f"its SHA-256{where} is {got[start:end]}, expected {expected[start:end]}"


@contextlib.contextmanager
def atomic_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A path to write a file to; when the block succeeds, the file gets the name ``path``, in place of one
    that had it.

    The temporary path has the suffix of ``path`` and stands in the same folder. Where ``path`` is a
    symbolic link, the file that it points to is replaced. When the block raises, nothing is left. Raises
    OSError.
    """
    final = Path(os.path.realpath(path))
    _remove_abandoned(final)
    part = final.with_name(f".{final.stem}.{secrets.token_hex(4)}.part{final.suffix}")
    descriptor = os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0), 0o666)
    try:
        locks.try_flock(descriptor)  # says that its writer lives
        yield part
        _flush(part)
        part.replace(final)
        flush_folder(final.parent)
    finally:
        os.close(descriptor)
        part.unlink(missing_ok=True)


def _remove_abandoned(final: Path) -> None:
    """Temporary files of writers of ``final`` that were killed. Where the file system has no locks they
    stay."""
    pattern = rf"\.{re.escape(final.stem)}\.[0-9a-f]{{8}}\.part{re.escape(final.suffix)}"
    with contextlib.suppress(OSError):  # without them writing goes on
        for name in os.listdir(final.parent):
            if not re.fullmatch(pattern, name):
                continue
            descriptor = os.open(final.with_name(name), os.O_RDWR)
            try:
                if locks.try_flock(descriptor):
                    final.with_name(name).unlink()
            finally:
                os.close(descriptor)


def flush(folder: Path) -> None:
    """Write every file and folder in ``folder`` from memory to the disk. Raises OSError, as for a full
    disk."""
    for root, _, names in os.walk(folder):
        for name in names:
            _flush(Path(root, name))
        flush_folder(Path(root))


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def flush_folder(folder: Path) -> None:
    """Write the names in ``folder`` to the disk, where its file system can be told to."""
    with contextlib.suppress(OSError):  # some file systems cannot flush a folder
        _flush(folder)


def put_folder(new: Path, place: Path) -> Path | None:
    """Give the folder ``new`` the name ``place``; where the folder that had this name stands now, or None.

    Both are in one file system. Where that file system can exchange two names, there is no moment without
    a whole folder at ``place``. Raises OSError, and both folders are where they were.
    """
    if not os.path.lexists(place):
        new.rename(place)
        old = None
    elif _exchange(new, place):
        old = new
    else:
        old = new.with_name(f"{new.name}.old")
        place.rename(old)
        try:
            new.rename(place)
        except OSError:
            old.rename(place)
            raise
    flush_folder(place.parent)
    return old


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two names at once; False where kernel, C library or file system cannot. Raises OSError."""
    if sys.platform != "linux":
        return False
    call = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if call is None:
        return False
    if call(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
        return False
    raise OSError(code, os.strerror(code), os.fspath(other))

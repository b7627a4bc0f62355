"""Atomic writes: a file or folder appears under its final name completely or not at all.

It is written under a temporary name, flushed to the disk and renamed. A process that is killed half-way
leaves a hidden temporary file beside the final name, and the next writer of the same file removes it. A power
failure at any moment leaves the old content or the new one.
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


def sha256(path: Path, *, forget: bool = False) -> str:
    """Return the SHA-256 of a file in hexadecimal digits.

    ``forget`` drops the file from the page cache behind the hash, where memory is scarce.
    """
    digest, advise = hashlib.sha256(), getattr(os, "posix_fadvise", None)
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
            if forget and advise:
                advise(file.fileno(), 0, file.tell(), os.POSIX_FADV_DONTNEED)
    return digest.hexdigest()


def difference(got: str, expected: str) -> str:
    """Describe two different hashes by the digits where they begin to differ."""
    same = next((i for i, pair in enumerate(zip(got, expected, strict=False)) if pair[0] != pair[1]), 0)
    start = same // _HASH_PART * _HASH_PART
    end = start + _HASH_PART
    where = f" from digit {start + 1} on" if start else ""
    return f"its SHA-256{where} is {got[start:end]}, expected {expected[start:end]}"


@contextlib.contextmanager
def atomic_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path to write to. When the block succeeds, the file is renamed to ``path``.

    A file that already has that name is replaced. The temporary path has the suffix of ``path`` and is in the
    same folder. If ``path`` is a symbolic link, the file that it points to is replaced. If the block raises,
    the temporary file is removed. Raises OSError.
    """
    final = Path(os.path.realpath(path))
    _remove_abandoned(final)
    part = final.with_name(f".{final.stem}.{secrets.token_hex(4)}.part{final.suffix}")
    descriptor = os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0), 0o666)
    try:
        locks.try_flock(descriptor)  # tells others that the writer is alive
        yield part
        _flush(part)
        part.replace(final)
        flush_folder(final.parent)
    finally:
        os.close(descriptor)
        part.unlink(missing_ok=True)


def _remove_abandoned(final: Path) -> None:
    """Remove temporary files that killed writers of ``final`` left.

    Without locks in the file system they stay.
    """
    pattern = rf"\.{re.escape(final.stem)}\.[0-9a-f]{{8}}\.part{re.escape(final.suffix)}"
    with contextlib.suppress(OSError):  # writing works with leftovers too
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
    """Flush every file and folder in ``folder`` to the disk.

    Raises OSError, for example if the disk is full.
    """
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
    """Flush the directory entries of ``folder`` to the disk, if its file system supports that."""
    with contextlib.suppress(OSError):  # some file systems cannot flush a folder
        _flush(folder)


def put_folder(new: Path, place: Path) -> Path | None:
    """Rename the folder ``new`` to ``place``. Return the new path of the folder that was there, or None.

    Both must be in one file system. If that file system can exchange two names, there is a complete folder at
    ``place`` at every moment. Raises OSError; then both folders are where they were.
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
    """Exchange two names atomically. False if kernel, C library or file system cannot. Raises OSError."""
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

"""The folder in a bundle that a compilation writes to, and the lock that it holds meanwhile."""

from __future__ import annotations

import contextlib
import errno
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from foveate.engines.disk import locks
from foveate.engines.errors import UserError
from foveate.runtime.bundle.loading import Bundle
from foveate.runtime.compiling.job import Progress

__all__ = ["locked", "work_folder"]

_WORK = ".compiling-"  # prefix of work folders beside the engines: ours, or left by runs that were killed
_READ_ONLY = (errno.EACCES, errno.EPERM, errno.EROFS)
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextlib.contextmanager
def locked(path: Path, progress: Progress) -> Iterator[None]:
    """Hold the lock of the bundle at ``path``, after waiting for others that write there.

    No lock is held if there is no bundle at ``path``, or if it is read-only, since then nobody writes.
    """
    with contextlib.ExitStack() as stack:
        if (path / "bundle.json").is_file():
            lock = locks.held(*(locks.inside(path), "foveate compile"), refused="", remedy="", wait=progress)
            try:
                stack.enter_context(lock)
            except OSError as error:
                if error.errno not in _READ_ONLY:
                    raise _unwritable(path, error) from error
        yield


@contextlib.contextmanager
def work_folder(bundle: Bundle) -> Iterator[Path]:
    """Yield an empty folder beside the engines. Remove it at the end, and what killed runs left behind.

    The caller holds the bundle's lock.
    """
    engines = bundle.path / "engines"
    try:
        engines.mkdir(exist_ok=True)
        for left in engines.glob(f"{_WORK}*"):
            shutil.rmtree(left, ignore_errors=True)
        work = Path(tempfile.mkdtemp(prefix=_WORK, dir=engines))
    except OSError as error:
        raise _unwritable(bundle.path, error) from error
    try:
        yield work
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise _unwritable(bundle.path, error) from error
    finally:
        shutil.rmtree(work, ignore_errors=True)  # holds the old engine if the two folders were exchanged
        shutil.rmtree(work.with_name(f"{work.name}.old"), ignore_errors=True)


def _unwritable(path: Path, error: OSError) -> UserError:
    reason = error.strerror
    if error.errno in _FULL:
        reason = f"{reason}, {shutil.disk_usage(path).free >> 20} MiB are free"
    return UserError(
        f"cannot write engines to {path} | {reason} "
        "| free some space, or copy the bundle to a folder that can be written"
    )

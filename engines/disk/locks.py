"""Locks between processes that write into one folder.

The processes may run on one machine, in several containers, or on several hosts.

A lock is ``flock`` on a small file that is never deleted. The kernel frees the lock when its process ends, in
whatever way. So a free lock means that its last holder is done or dead, and process ids, which repeat in
containers, do not matter. The file's content tells who holds the lock. It is used in messages only.

Some file systems have no ``flock``, and on some (NFS, CIFS, FUSE) it may be visible on this host only. For
those a second file, ``<lock>.owner``, is created exclusively and removed at the end. It names the host, its
boot id, the process and the process's start time. An owner file of another host is never removed, since that
host's processes cannot be seen from here. The error message names the file.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType

from foveate.engines.disk import mounts
from foveate.engines.disk.lock_owner import Owner, started
from foveate.engines.errors import UserError

try:
    fcntl: ModuleType | None = importlib.import_module("fcntl")
except ImportError:  # Windows
    fcntl = None

__all__ = ["beside", "held", "inside", "try_flock"]

_PAUSE = 0.2  # seconds between two attempts to take a lock
_NO_FLOCK = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL}
# file systems whose flock may be visible on one host only, or through one mount only
_SHARED = {
    *(
        "nfs",
        "nfs4",
        "cifs",
        "smb3",
        "smbfs",
        "9p",
        "afs",
        "ceph",
        "gfs2",
        "glusterfs",
        "gpfs",
        "lustre",
        "beegfs",
    ),
    *("ocfs2", "virtiofs", "vboxsf", "prl_fs", "fuse"),
}


def inside(folder: Path) -> Path:
    """Return the lock file to hold while writing into ``folder``."""
    return folder / ".lock"


def beside(folder: Path) -> Path:
    """Return the lock file to hold while replacing ``folder``, which need not exist."""
    return folder.with_name(f".{folder.name}.lock")


@contextlib.contextmanager
def held(
    file: Path, what: str, *, refused: str, remedy: str, wait: Callable[[str], None] | None = None
) -> Iterator[None]:
    """Hold the lock ``file`` during the block.

    ``what`` is shown to others who want the lock, e.g. "foveate build". If another process holds it: with
    ``wait``, ``wait`` is called once with a line of text, and this waits for the lock. Without ``wait``,
    UserError says ``refused`` | who holds it | ``remedy``. Raises OSError if ``file`` cannot be opened.
    """
    said = False
    while isinstance(found := _take(file, Owner.here(what)), str):
        if wait is None:
            raise UserError(f"{refused} | {found} holds its lock {file} | {remedy}")
        if not said:
            wait(f"waiting for {found}, which holds the lock {file}")
            said = True
        time.sleep(_PAUSE)
    try:
        yield
    finally:
        found.release()


@dataclass(frozen=True)
class _Taken:
    """A lock that is held. ``owner`` is the owner file, or None."""

    descriptor: int
    owner: Path | None

    def release(self) -> None:
        if self.owner is not None:
            self.owner.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # the content matters only while the lock is held
            os.ftruncate(self.descriptor, 0)
        os.close(self.descriptor)


def _take(file: Path, me: Owner) -> _Taken | str:
    """Take the lock, or return who holds it.

    Raises OSError, and UserError for the owner file of another host.
    """
    while True:
        descriptor = _open(file)
        try:
            got = try_flock(descriptor)
            if got is False:
                return str(Owner.parse(_read(descriptor)) or "another process")
            if got and not _is_at(descriptor, file):  # the folder was replaced meanwhile
                continue
            owner = None
            if got is None or _is_shared(file):
                owner = file.with_name(f"{file.name}.owner")
                if isinstance(found := _create_owner(owner, me, flocked=bool(got)), str):
                    return found
            else:
                with contextlib.suppress(OSError):  # a full disk; the content is for messages only
                    _write(descriptor, me)
            taken, descriptor = _Taken(descriptor, owner), -1
            return taken
        finally:
            if descriptor >= 0:
                os.close(descriptor)


def try_flock(descriptor: int) -> bool | None:
    """Try to lock an open file without waiting.

    Returns True if it is locked now, False if another process holds the lock, and None if the file system has
    no such locks. Raises OSError.
    """
    if fcntl is None:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno in _NO_FLOCK:
            return None
        raise
    return True


def _open(file: Path) -> int:
    flags = getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NOFOLLOW", 0)
    try:
        return os.open(file, os.O_RDWR | os.O_CREAT | flags, 0o666)
    except PermissionError:
        if not file.is_file():
            raise
        return os.open(file, os.O_RDONLY | flags)  # another user's file can be locked too


def _is_at(descriptor: int, file: Path) -> bool:
    mine = os.fstat(descriptor)
    try:
        there = file.stat()
    except FileNotFoundError:
        return False
    return (mine.st_dev, mine.st_ino) == (there.st_dev, there.st_ino)


def _is_shared(file: Path) -> bool:
    mount = mounts.of(file)
    return mount is not None and mount.kind.partition(".")[0] in _SHARED


def _create_owner(file: Path, me: Owner, *, flocked: bool) -> str | None:
    """Create the owner file.

    If it exists, return who holds the lock. Raises UserError if another host does.
    """
    for _ in range(5):
        try:
            descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        except FileExistsError:
            there = _owner_of(file)
            if there is None:
                continue  # it was removed just now
            if there.boot != me.boot or (there.space != me.space and not flocked):
                raise _unseen(file, there, me) from None
            if not flocked and started(there.pid) == there.started:
                return str(there)
            file.unlink(missing_ok=True)  # left by a process of this host that has ended
        else:
            try:
                _write(descriptor, me)
            except OSError:  # a full disk; an empty file would lock everybody out
                file.unlink()
                raise
            finally:
                os.close(descriptor)
            return None
    return "another process"


def _owner_of(file: Path) -> Owner | None:
    """Return the owner that ``file`` names, or None if there is no file.

    Raises UserError if it stays empty.
    """
    for _ in range(5):
        try:
            there = Owner.parse(file.read_text(encoding="utf-8", errors="replace"))
        except FileNotFoundError:
            return None
        if there is not None:
            return there
        time.sleep(_PAUSE)  # it is being written
    raise UserError(
        f"{file.parent} is locked | {file} does not say by whom | if nothing writes there, remove that file"
    )


def _unseen(file: Path, there: Owner, me: Owner) -> UserError:
    where = (
        "in another container"
        if there.boot == me.boot
        else "on another host, or before this one was restarted"
    )
    return UserError(
        f"{file.parent} is locked {where} | by {there}, which cannot be seen from here, and its file system "
        f"has no locks that can be relied on | if it does not run any more, remove {file}"
    )


def _write(descriptor: int, owner: Owner) -> None:
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, json.dumps(asdict(owner)).encode(), 0)


def _read(descriptor: int) -> str:
    return os.pread(descriptor, 4096, 0).decode("utf-8", "replace")

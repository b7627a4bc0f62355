"""Locks between processes that write into one folder, on one machine, in several containers, or on several
hosts.

A lock is ``flock`` on a small file that is never deleted. The kernel frees it when its process ends, however
it ends: what a killed process left is known by its free lock, and process ids, which repeat in containers, do
not matter. The file tells who holds the lock, for messages alone.

Some file systems have no ``flock``, and on some (NFS, CIFS, FUSE) it may hold on this host alone. There a
second file, ``<lock>.owner``, is created exclusively and removed at the end. It names the host, its boot,
the process and when that started. One that another host left is never removed, since its processes cannot
be seen from here; the message names the file.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import platform
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from foveate.engines.disk import mounts
from foveate.engines.errors import UserError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

__all__ = ["Owner", "beside", "held", "inside", "try_flock"]

_PAUSE = 0.2  # seconds between two looks at a lock that somebody holds
_NO_FLOCK = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL}
# their flock may hold on one host alone, or on one mount alone
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
    """The lock of whoever writes into ``folder``."""
    return folder / ".lock"


def beside(folder: Path) -> Path:
    """The lock of whoever puts another folder in the place of ``folder``, which need not exist."""
    return folder.with_name(f".{folder.name}.lock")


@dataclass(frozen=True)
class Owner:
    """Who holds a lock. ``boot`` is Linux's id of the machine's current run, ``started`` when the process
    began (clock ticks after the boot), ``space`` its namespace of process ids."""

    what: str
    host: str
    boot: str
    space: str
    pid: int
    started: str
    since: str

    @classmethod
    def here(cls, what: str) -> Owner:
        """This process, doing ``what``, e.g. "foveate build"."""
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        pid = os.getpid()
        return cls(what, platform.node(), _boot(), _space(), pid, _started(pid), since)

    @classmethod
    def parse(cls, text: str) -> Owner | None:
        """None for what is no record of an owner, as while it is being written."""
        try:
            return cls(**json.loads(text))
        except (ValueError, TypeError):
            return None

    def __str__(self) -> str:
        return f"{self.what} (process {self.pid} on {self.host}, since {self.since})"


@contextlib.contextmanager
def held(
    file: Path, what: str, *, refused: str, remedy: str, wait: Callable[[str], None] | None = None
) -> Iterator[None]:
    """Hold the lock ``file`` during the block; ``what`` is told to others who want it, e.g. "foveate build".

    When somebody else holds it: with ``wait`` this is called once with a line, and the lock is waited for;
    without it UserError says ``refused`` | who holds it | ``remedy``. Raises OSError when ``file`` cannot
    be opened.
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
    """A lock that is held. ``owner``: the second file, where there is one."""

    descriptor: int
    owner: Path | None

    def release(self) -> None:
        if self.owner is not None:
            self.owner.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # what it says counts only while the lock is held
            os.ftruncate(self.descriptor, 0)
        os.close(self.descriptor)


def _take(file: Path, me: Owner) -> _Taken | str:
    """The lock, or who holds it. Raises OSError, and UserError for what another host left."""
    while True:
        descriptor = _open(file)
        try:
            got = try_flock(descriptor)
            if got is False:
                return str(Owner.parse(_read(descriptor)) or "another process")
            if got and not _is_at(descriptor, file):  # its folder was replaced meanwhile
                continue
            owner = None
            if got is None or _is_shared(file):
                owner = file.with_name(f"{file.name}.owner")
                if isinstance(found := _create_owner(owner, me, flocked=bool(got)), str):
                    return found
            else:
                with contextlib.suppress(OSError):  # a full disk; what it says is for messages alone
                    _write(descriptor, me)
            taken, descriptor = _Taken(descriptor, owner), -1
            return taken
        finally:
            if descriptor >= 0:
                os.close(descriptor)


def try_flock(descriptor: int) -> bool | None:
    """Whether an open file is locked now; None where its file system has no such locks. Never waits.
    Raises OSError."""
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
        return os.open(file, os.O_RDONLY | flags)  # another user's: it can be locked all the same


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
    """Create the second file; who holds the lock where it is there already. Raises UserError for another
    host's."""
    for _ in range(5):
        try:
            descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        except FileExistsError:
            there = _owner_of(file)
            if there is None:
                continue  # it was removed just now
            if there.boot != me.boot or (there.space != me.space and not flocked):
                raise _unseen(file, there, me) from None
            if not flocked and _started(there.pid) == there.started:
                return str(there)
            file.unlink(missing_ok=True)  # of a process of this host that ended
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
    """Who is named in the file; None where there is none. Raises UserError when it stays empty."""
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
        f"{file.parent} is locked {where} | by {there}, which cannot be seen from here, and its file system has no locks that "
        f"can be relied on | if it does not run any more, remove {file}"
    )


def _write(descriptor: int, owner: Owner) -> None:
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, json.dumps(asdict(owner)).encode(), 0)


def _read(descriptor: int) -> str:
    return os.pread(descriptor, 4096, 0).decode("utf-8", "replace")


def _boot() -> str:
    """Differs from machine to machine and from one run of a machine to the next; containers of one machine
    share it."""
    return _line("/proc/sys/kernel/random/boot_id")


def _space() -> str:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def _started(pid: int) -> str:
    """When a process of this namespace began; empty where there is none of this id."""
    fields = _line(f"/proc/{pid}/stat").rpartition(")")[2].split()  # a program's name may hold blanks
    return fields[19] if len(fields) > 19 else ""


def _line(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""

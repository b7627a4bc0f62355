"""The place where a bundle is built. The folder of ``--out`` is checked and locked before any work.

The bundle is written into a hidden folder beside its final place, on the same disk. A build that fails or is
killed leaves nothing under the final name. The next build removes what a killed one left beside it, since a
free lock shows that no build runs (``engines.disk.locks``). If the final folder cannot be renamed, such as a
mount point, the hidden folder and the lock are inside it (``publish``).
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from foveate.engines.disk import locks, mounts
from foveate.engines.errors import UserError
from foveate.runtime.bundle.loading import UNFINISHED

__all__ = ["FULL", "Place", "in_the_way", "no_room", "reserved", "unfinished_files"]

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_WHAT = "foveate build"
_READ_ONLY = (errno.EACCES, errno.EPERM, errno.EROFS)
_FOREIGN = {"lost+found", "System Volume Information", "$RECYCLE.BIN"}  # folders at the root of file systems


@dataclass(frozen=True)
class Place:
    """The place of a bundle that is being built.

    ``name`` is the bundle's name. ``folder`` is its final folder, with links resolved. ``root`` is the hidden
    folder that it is written into. ``inside``: ``folder`` cannot be renamed, and ``root`` is in it.
    """

    name: str
    folder: Path
    root: Path
    inside: bool

    @property
    def beside(self) -> Path:
        """Path of files that go with the bundle, to which they add a suffix.

        It is on the same disk as the bundle.
        """
        return self.folder / self.name if self.inside else self.folder


@contextlib.contextmanager
def reserved(out: Path) -> Iterator[Place]:
    """Reserve the place of a bundle to be built at ``out``.

    No other process builds or compiles there during the block. At the end of the block the rest of
    ``root`` is removed. Raises UserError when ``out`` exists and is not a
    bundle, when it cannot be written to, and when it is in use.
    """
    name, folder = Path(os.path.abspath(out)).name, _real(out)
    try:
        reason, inside = in_the_way(folder, name), _cannot_be_renamed(folder)
    except OSError as error:
        raise UserError(f"cannot read {out} | {error.strerror} | choose another --out") from error
    if reason:
        raise UserError(f"{out} is in the way | {reason} | choose another --out")
    hidden = _hidden(folder, inside)
    with contextlib.ExitStack() as stack:
        # these run after the locks are released: the old bundle holds a lock, and NFS and FUSE keep open
        # files in their folder
        for root in (hidden, hidden.with_name(f"{hidden.name}.old")):
            stack.callback(shutil.rmtree, root, ignore_errors=True)
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            _lock(stack, folder, inside)
            _remove_leftovers(folder, inside)
            hidden.mkdir()
        except OSError as error:
            if error.errno in FULL:
                raise no_room(folder.parent, error) from error
            raise UserError(
                f"cannot write to {folder if inside else folder.parent} | {error.strerror} "
                "| choose another --out"
            ) from error
        try:
            yield Place(name, folder, hidden, inside)
        except OSError as error:
            if error.errno not in FULL:
                raise
            raise no_room(folder.parent, error) from error


def no_room(folder: Path, error: OSError) -> UserError:
    """Return the UserError for a full disk, a used-up quota, or a file that is too large for its disk."""
    if error.errno == errno.EFBIG:
        mount = mounts.of(folder)
        kind = (
            f"its file system is {mount.kind}"
            if mount
            else "its file system or `ulimit -f` ends files earlier"
        )
        return UserError(
            f"{folder} cannot hold files of that size "
            f"| {kind}; FAT ends files at 4 GiB, and `ulimit -f` may limit them "
            "| choose another --out, or format that disk as exFAT or ext4"
        )
    what = "the quota is used up" if error.errno == errno.EDQUOT else "the disk is full"
    free = shutil.disk_usage(folder).free >> 20
    return UserError(f"{what} | {folder} has {free} MiB left | free some space or choose another --out")


def in_the_way(folder: Path, name: str) -> str | None:
    """Return why no bundle called ``name`` may be put at ``folder``, or None if it may.

    It may if nothing is there, or a bundle, or the files of an unfinished build.
    """
    if not os.path.lexists(folder) or (folder / "bundle.json").is_file():
        return None
    if not folder.is_dir():
        return "it is a file, expected a folder or nothing"
    ours = {Path(each).parts[0] for each in unfinished_files(folder)} | {
        locks.inside(folder).name,
        UNFINISHED,
    }
    there = {path.name for path in folder.iterdir()} - ours
    if _cannot_be_renamed(folder):  # files of others stay there
        beside = re.compile(rf"{re.escape(name)}\.statistics\.safetensors(\.partial)?")
        there = {each for each in there - _FOREIGN if not each.startswith(".") and not beside.fullmatch(each)}
        there -= {"engines"}
    if there:
        return f"it is no bundle and holds {', '.join(sorted(there)[:3])}, so it is not replaced"
    return None


def unfinished_files(folder: Path) -> list[str]:
    """Return the files of an interrupted build in ``folder``, as paths relative to it."""
    try:
        found = json.loads((folder / UNFINISHED).read_text(encoding="utf-8"))
    except (OSError, ValueError):  # no list, or one cut short before the first file was moved
        return []
    names = found if isinstance(found, list) else []
    return [name for name in names if isinstance(name, str) and name and _stays_inside(name)]


def _stays_inside(name: str) -> bool:
    path = Path(name)
    return not path.is_absolute() and ".." not in path.parts


def _real(out: Path) -> Path:
    """Resolve the links of ``out``. Raises UserError for a link to a place where no folder can be made."""
    try:
        folder = out.resolve()
    except (OSError, RuntimeError) as error:  # a loop; RuntimeError before Python 3.13
        raise UserError(f"{out} leads nowhere | its links form a loop | choose another --out") from error
    if out.is_symlink() and not folder.parent.is_dir():
        raise UserError(
            f"{out} is a link to {folder} "
            f"| there is no folder {folder.parent}, as when a disk is not mounted "
            "| mount it, or choose another --out"
        )
    return folder


def _cannot_be_renamed(folder: Path) -> bool:
    """Return True if the bundle must be moved into ``folder`` file by file.

    Reasons: something is mounted there, the folder cannot be renamed, it is the current folder (whose name a
    shell would lose), or an earlier build began to do so.
    """
    if not folder.is_dir():
        return False
    return (
        mounts.at_or_below(folder)
        or not os.access(folder.parent, os.W_OK)
        or Path.cwd().is_relative_to(folder)
        or (folder / UNFINISHED).exists()
    )


def _lock(stack: contextlib.ExitStack, folder: Path, inside: bool) -> None:
    """Hold the locks against other builds and compilations until ``stack`` ends.

    Raises UserError or OSError.
    """

    def take(lock: Path) -> None:
        refused, remedy = f"{folder} is in use", "wait for its end, or choose another --out"
        stack.enter_context(locks.held(lock, _WHAT, refused=refused, remedy=remedy))

    if not inside:
        take(locks.beside(folder))
    if folder.is_dir():
        try:
            take(locks.inside(folder))
        except OSError as error:
            # nobody can compile in a folder that is read-only, so no lock is needed there
            if inside or error.errno not in _READ_ONLY:
                raise


def _hidden(folder: Path, inside: bool) -> Path:
    token = secrets.token_hex(4)
    return folder / f".building-{token}" if inside else folder.with_name(f".{folder.name}.building-{token}")


def _remove_leftovers(folder: Path, inside: bool) -> None:
    """Remove the leftovers of killed builds. The lock is held, so none of them still runs."""
    parent, prefix = (folder, "") if inside else (folder.parent, f".{folder.name}")
    pattern = re.compile(rf"{re.escape(prefix)}\.building-[0-9a-f]+(\.old)?")
    for path in parent.iterdir():
        if pattern.fullmatch(path.name):
            if path.is_symlink():  # left by older versions, which renamed links
                path.unlink()
            else:
                shutil.rmtree(path, ignore_errors=True)

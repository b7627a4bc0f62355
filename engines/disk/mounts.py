"""Mounted file systems on Linux: where each one is mounted, and its type.

Python's ``os.path.ismount`` does not see a bind mount whose source is on the same disk;
``/proc/self/mountinfo`` does.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Mount", "at_or_below", "mounts", "of"]

_MOUNTINFO = Path("/proc/self/mountinfo")


@dataclass(frozen=True)
class Mount:
    """A mounted file system.

    ``point`` is the absolute path of the folder, ``kind`` the file system's type, e.g. "ext4" or
    "fuse.sshfs".
    """

    point: Path
    kind: str


def mounts() -> list[Mount]:
    """Return every mount that this process sees, oldest first.

    The list is empty if the system does not tell.
    """
    try:
        lines = _MOUNTINFO.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:  # no Linux, or no /proc
        return []
    found = []
    for line in lines:
        fields = line.split(" ")
        point = re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), fields[4])
        found.append(Mount(Path(point), fields[fields.index("-", 6) + 1]))
    return found


def of(path: Path) -> Mount | None:
    """Return the mount that ``path`` is on, or None if the system does not tell. ``path`` need not exist."""
    real = Path(os.path.realpath(path))
    # if two file systems are mounted at one point, the later one covers the earlier
    around = [mount for mount in mounts() if real.is_relative_to(mount.point)]
    return max(reversed(around), key=lambda mount: len(mount.point.parts), default=None)


def at_or_below(folder: Path) -> bool:
    """True if a file system is mounted at ``folder`` or below it.

    Such a folder cannot be renamed or removed.
    """
    real = Path(os.path.realpath(folder))
    return os.path.ismount(real) or any(mount.point.is_relative_to(real) for mount in mounts())

"""Mounted file systems, as Linux tells of them: where each one is mounted, and of which type it is.

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
    """``point``: the absolute path of the folder; ``kind``: the file system's type, e.g. "ext4" or
    "fuse.sshfs"."""

    point: Path
    kind: str


def mounts() -> list[Mount]:
    """Every mount that this process sees, in the order in which they were made; none where the system does
    not tell."""
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
    """The mount that ``path`` lies on; None where the system does not tell. ``path`` need not exist."""
    real = Path(os.path.realpath(path))
    # of two mounts at one point the later one covers the earlier
    around = [mount for mount in mounts() if real.is_relative_to(mount.point)]
    return max(reversed(around), key=lambda mount: len(mount.point.parts), default=None)


def at_or_below(folder: Path) -> bool:
    """Whether a file system is mounted at ``folder`` or in it, so that the folder cannot be renamed or
    removed."""
    real = Path(os.path.realpath(folder))
    return os.path.ismount(real) or any(mount.point.is_relative_to(real) for mount in mounts())

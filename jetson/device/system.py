"""Access to a machine: files below a root folder, and commands. Tests pass recorded files and outputs."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["System", "run"]

_SECONDS = 20  # a probe that takes longer is stuck
_SBIN = ":/usr/sbin:/sbin"  # often not on a user's PATH; holds nvpmodel


def run(*command: str) -> str | None:
    """Return what ``command`` prints, or None if it is missing, fails or hangs."""
    path = shutil.which(command[0], path=os.environ.get("PATH", "") + _SBIN)
    if path is None:
        return None
    try:
        done = subprocess.run(
            [path, *command[1:]],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


def _free(path: Path) -> int:
    return shutil.disk_usage(path).free


@dataclass(frozen=True)
class System:
    """A machine.

    ``run`` returns a command's output or None, ``free`` the free bytes of a path's disk. ``python`` is the
    version of this Python.
    """

    root: Path = Path("/")
    run: Callable[..., str | None] = field(default=run)
    free: Callable[[Path], int] = field(default=_free)
    python: str = field(default_factory=platform.python_version)

    def read(self, path: str) -> str | None:
        """Return the text of a file, or None if it is missing or not readable.

        The NUL at the end of device-tree files is removed.
        """
        try:
            return (self.root / path.lstrip("/")).read_text(errors="replace").rstrip("\0\n")
        except OSError:
            return None

    def glob(self, pattern: str) -> list[Path]:
        """Return the paths that match ``pattern``, sorted."""
        return sorted(self.root.glob(pattern.lstrip("/")))

    def exists(self, path: str) -> bool:
        """Return True if ``path`` exists, even as a broken link."""
        return os.path.lexists(self.root / path.lstrip("/"))

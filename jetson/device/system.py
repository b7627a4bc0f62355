"""A machine to look at: files below a root directory, and commands. Tests give it recorded files and outputs."""

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
_SBIN = ":/usr/sbin:/sbin"  # not on everybody's PATH; nvpmodel is there


def run(*command: str) -> str | None:
    """What ``command`` prints; None: it is not there, failed or is stuck."""
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
    """``run`` gives a command's output or None, ``free`` the bytes that a path's disk has left, ``python`` the version of this Python."""

    root: Path = Path("/")
    run: Callable[..., str | None] = field(default=run)
    free: Callable[[Path], int] = field(default=_free)
    python: str = field(default_factory=platform.python_version)

    def read(self, path: str) -> str | None:
        """The text of a file, without the NUL that device trees end in; None: it is not there or not for us."""
        try:
            return (self.root / path.lstrip("/")).read_text(errors="replace").rstrip("\0\n")
        except OSError:
            return None

    def glob(self, pattern: str) -> list[Path]:
        return sorted(self.root.glob(pattern.lstrip("/")))

    def exists(self, path: str) -> bool:
        return os.path.lexists(self.root / path.lstrip("/"))

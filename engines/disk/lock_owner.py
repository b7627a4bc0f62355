"""The process that holds a lock, as a lock file names it."""

from __future__ import annotations

import json
import os
import platform
import time
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Owner", "started"]


@dataclass(frozen=True)
class Owner:
    """The process that holds a lock.

    ``boot`` is Linux's boot id, ``started`` the start time of the process (clock ticks after the boot),
    ``space`` its PID namespace.
    """

    what: str
    host: str
    boot: str
    space: str
    pid: int
    started: str
    since: str

    @classmethod
    def here(cls, what: str) -> Owner:
        """Return the record of this process, which does ``what``, e.g. "foveate build"."""
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        pid = os.getpid()
        return cls(what, platform.node(), _boot(), _space(), pid, started(pid), since)

    @classmethod
    def parse(cls, text: str) -> Owner | None:
        """Read a record. Return None if ``text`` is not a complete one, as while it is being written."""
        try:
            return cls(**json.loads(text))
        except (ValueError, TypeError):
            return None

    def __str__(self) -> str:
        return f"{self.what} (process {self.pid} on {self.host}, since {self.since})"


def _boot() -> str:
    """Return the boot id: new at every start of a machine, and shared by its containers."""
    return _line("/proc/sys/kernel/random/boot_id")


def _space() -> str:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def started(pid: int) -> str:
    """Return the start time of a process of this namespace, or "" if there is none with this id."""
    fields = _line(f"/proc/{pid}/stat").rpartition(")")[2].split()  # a program's name may contain spaces
    return fields[19] if len(fields) > 19 else ""


def _line(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""

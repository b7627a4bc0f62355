"""The one exception that users see.

Its text is *what happened | got, expected | what to do*, without a traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = ["NoMemoryError", "RefusedError", "UserError", "install_extra", "unknown"]


class UserError(Exception):
    """An error that the user can fix. ``code`` is the exit status: 1 for a failure, 2 for wrong usage."""

    def __init__(self, message: str, *, code: int = 1) -> None:
        super().__init__(message)
        self.code = code


class RefusedError(UserError):
    """A compiler or a loader that refuses a graph, which may take it in another form."""


class NoMemoryError(UserError):
    """Memory that does not suffice now, and may later."""


def install_extra(name: str) -> str:
    """Return the command that installs an extra: from a clone, since foveate is on no package index.

    A device without a network has no clone. It gets the one extra that is for devices, ``video``, in a pack.
    """
    command = f"in a clone of foveate: pip install --editable '.[{name}]'"
    if name == "video":
        command += "; for a device without a network: `foveate pack` or `foveate deploy` with --video"
    return command


def unknown(kind: str, name: str, known: Iterable[str]) -> UserError:
    """Return the error for an unknown name. It suggests the nearest known one."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]}?" if near else "choose one of the known ones"
    return UserError(f"unknown {kind} {name!r} | known: {', '.join(names)} | {hint}", code=2)

"""The one exception that users see: *what happened | got, expected | what to do*, printed without a trace."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = ["UserError", "unknown"]


class UserError(Exception):
    """Something the user can mend. ``code`` is the exit status: 1 failed, 2 wrong usage."""

    def __init__(self, message: str, *, code: int = 1) -> None:
        super().__init__(message)
        self.code = code


def unknown(kind: str, name: str, known: Iterable[str]) -> UserError:
    """An unknown name, answered with the nearest known one."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]}?" if near else "choose one of the known ones"
    return UserError(f"unknown {kind} {name!r} | known: {', '.join(names)} | {hint}", code=2)

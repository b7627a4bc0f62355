"""Faults of a file that a user named."""

from __future__ import annotations

import os
import stat

__all__ = ["PIPE", "fault"]

PIPE = "got a pipe"


def fault(path: str | os.PathLike[str]) -> str | None:
    """Return why ``path`` is not a file with content, as the middle part of a ``UserError``.

    Returns ``PIPE`` for a pipe, and None if the file is usable. Names that the operating system refuses (too
    long, or with a zero character) are reported as well.
    """
    try:
        facts = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return "got no such file"
    except OSError as error:
        return str(error.strerror or error).lower()
    except ValueError as error:
        return str(error)
    if stat.S_ISREG(facts.st_mode):
        return None if facts.st_size else "the file is empty (0 bytes)"
    if stat.S_ISFIFO(facts.st_mode):
        return PIPE
    return "got a directory" if stat.S_ISDIR(facts.st_mode) else "got a device or a socket"

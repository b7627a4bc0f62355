"""What is wrong with a file that a user named."""

from __future__ import annotations

import os
import stat

__all__ = ["PIPE", "fault"]

PIPE = "got a pipe"


def fault(path: str | os.PathLike[str]) -> str | None:
    """Why ``path`` is no file with content, for the middle of a ``UserError``; ``PIPE`` for a pipe; None when all is well.

    Also where the operating system refuses to look: a name that is too long, one with a zero character.
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

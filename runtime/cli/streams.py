"""Standard streams that are closed, full or broken: no traceback, and no work lost because a line could not be printed.

A descriptor that was closed (``>&-``) is taken by /dev/null, so that no file which is opened later gets the number 0, 1 or 2 and
with it what libraries print. A stream that fails is led to /dev/null from then on, and the first fault is remembered.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

__all__ = ["Output", "guarded"]


class Output:
    """A text stream that outlives its faults. ``raises`` decides which of them are raised, after they were remembered.

    Everything else (``fileno``, ``isatty``, ``encoding``, ...) is the stream's own.
    """

    def __init__(self, stream: Any, raises: Callable[[OSError], bool] = lambda error: False) -> None:
        self._stream, self._raises = stream, raises
        self.fault: OSError | None = None

    def write(self, text: str) -> int:
        self._try(self._stream.write, text)
        return len(text)

    def writelines(self, lines: list[str]) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        self._try(self._stream.flush)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _try(self, function: Callable[..., Any], *arguments: str) -> None:
        try:
            function(*arguments)
        except OSError as error:
            self._lead_to_nowhere()
            self.fault = self.fault or error
            if self._raises(error):
                raise

    def _lead_to_nowhere(self) -> None:
        """What the stream still holds is written at the end of the process, and must not fail again then."""
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._stream.fileno())
        os.close(nowhere)


@contextlib.contextmanager
def guarded(raises: Callable[[OSError], bool]) -> Iterator[Output]:
    """``sys.stdout`` and ``sys.stderr`` are ``Output`` meanwhile; yields the first. ``raises`` is for that one alone: of faults of
    the standard error nobody can be told."""
    old = sys.stdout, sys.stderr
    _occupy(0, os.O_WRONLY)
    out = Output(_stream(sys.stdout, 1), raises)
    sys.stdout, sys.stderr = out, Output(_stream(sys.stderr, 2))
    try:
        yield out
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError):  # remembered in ``fault``
                stream.flush()
        sys.stdout, sys.stderr = old


def _stream(stream: Any, number: int) -> Any:
    if stream is None:  # Python's sign that the descriptor was closed
        _occupy(number, os.O_RDONLY)
        return open(number, "w", encoding="utf-8", errors="replace", closefd=False)
    if hasattr(stream, "reconfigure"):
        stream.reconfigure(errors="replace")  # an answer may hold what the terminal cannot show
    return stream


def _occupy(number: int, mode: int) -> None:
    """Open /dev/null as descriptor ``number`` where nothing is. ``mode`` is the one in which using it fails, as it should."""
    try:
        os.fstat(number)
    except OSError:
        nowhere = os.open(os.devnull, mode)
        if nowhere != number:
            os.dup2(nowhere, number)
            os.close(nowhere)
        os.set_inheritable(number, True)

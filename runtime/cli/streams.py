"""Standard streams that are closed, full or broken.

They cause no traceback, and no work is lost because of them.

/dev/null takes the place of a descriptor that was closed (``>&-``). Otherwise a file opened later would get
number 0, 1 or 2, and receive what libraries print. A stream that fails is redirected to /dev/null, and its
first fault is remembered.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

__all__ = ["Output", "guarded"]


class Output:
    """A text stream that survives errors. ``raises`` decides which errors are raised after being remembered.

    All other attributes (``fileno``, ``isatty``, ``encoding``, ...) are the stream's own.
    """

    def __init__(self, stream: Any, raises: Callable[[OSError], bool] = lambda error: False) -> None:
        self._stream, self._raises = stream, raises
        self.fault: OSError | None = None

    def write(self, text: str) -> int:
        """Write a text and return its length."""
        self._try(self._stream.write, text)
        return len(text)

    def writelines(self, lines: list[str]) -> None:
        """Write several texts."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Flush the stream."""
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
        """Redirect the stream to /dev/null, so that flushing its buffer at exit does not fail again."""
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._stream.fileno())
        os.close(nowhere)


@contextlib.contextmanager
def guarded(raises: Callable[[OSError], bool]) -> Iterator[Output]:
    """Replace ``sys.stdout`` and ``sys.stderr`` by ``Output`` during the block. Yield the one of stdout.

    ``raises`` applies to stdout only: a fault of stderr cannot be reported anywhere.
    """
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
    if stream is None:  # Python sets None if the descriptor was closed
        _occupy(number, os.O_RDONLY)
        return open(number, "w", encoding="utf-8", errors="replace", closefd=False)
    if hasattr(stream, "reconfigure"):
        stream.reconfigure(errors="replace")  # an answer may hold characters that the terminal cannot show
    return stream


def _occupy(number: int, mode: int) -> None:
    """Open /dev/null as descriptor ``number`` if that is closed.

    ``mode`` is the direction in which the stream is not used, so that using it still fails.
    """
    try:
        os.fstat(number)
    except OSError:
        nowhere = os.open(os.devnull, mode)
        if nowhere != number:
            os.dup2(nowhere, number)
            os.close(nowhere)
        os.set_inheritable(number, True)

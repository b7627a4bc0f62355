"""TensorRT's messages, and its progress while it builds.

TensorRT keeps the first logger that it sees in a process, so there is one, and one runtime.
"""

from __future__ import annotations

import re
import sys
import time
from collections import deque
from functools import cache
from types import ModuleType
from typing import Any

from foveate.engines.errors import UserError

__all__ = ["log", "monitor", "runtime", "started"]

_KEPT = 1000  # messages
_SCRATCH = re.compile(r"Total Activation Memory: (\d+)")


def log(trt: ModuleType) -> Any:
    """Return the logger of this process. It keeps TensorRT's last messages, so that an error can say why."""
    return _log(trt.ILogger)


@cache
def _log(base: Any) -> Any:  # a class without types
    class Log(base):
        def __init__(self) -> None:
            base.__init__(self)
            self.lines: deque[str] = deque(maxlen=_KEPT)  # warnings and errors
            self.errors: deque[str] = deque(maxlen=_KEPT)
            self.scratch: int | None = None  # bytes, of the profile of a build that takes most

        def log(self, severity: Any, message: str) -> None:
            if severity <= base.Severity.WARNING:
                self.lines.append(message)
            if severity <= base.Severity.ERROR:
                self.errors.append(message)
            if found := _SCRATCH.search(message):
                self.scratch = max(self.scratch or 0, int(found[1]))

        def clear(self) -> None:
            """Forget all messages."""
            self.lines.clear()
            self.errors.clear()
            self.scratch = None

        def said(self) -> str:
            """Return the last errors, or the last warnings if there are no errors."""
            return "; ".join(list(self.errors or self.lines)[-3:]) or "it does not say why"

    return Log()


@cache
def runtime(trt: ModuleType) -> Any:
    """Return TensorRT's runtime of this process. Raises UserError if TensorRT cannot start."""
    return started(trt, "Runtime")


def started(trt: ModuleType, kind: str) -> Any:
    """Return a new ``trt.Builder`` or ``trt.Runtime`` with the logger of this process.

    Raises UserError if there is none: the binding calls that a TypeError.
    """
    try:
        return getattr(trt, kind)(log(trt))
    except TypeError as error:
        raise UserError(
            f"{trt.__name__} {trt.__version__} cannot start | {log(trt).said()} "
            "| check the driver with nvidia-smi, and that no other program has the memory"
        ) from error


def monitor(trt: ModuleType) -> Any:
    """Return a progress monitor that prints the phases of the build to stderr.

    On a terminal it updates one line. Otherwise it prints a line every ten seconds.
    """
    terminal = sys.stderr.isatty()

    base: Any = trt.IProgressMonitor  # a class without types

    class Monitor(base):
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self._steps: dict[str, int] = {}
            self._said = time.monotonic()

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self._steps[phase_name] = num_steps

        def step_complete(self, phase_name: str, step: int) -> bool:
            now = time.monotonic()
            if now - self._said >= (0.2 if terminal else 10):
                self._said = now
                line = f"{phase_name} {step + 1}/{self._steps.get(phase_name, step + 1)}"
                print(
                    f"\r\033[K{line}" if terminal else line,
                    end="" if terminal else "\n",
                    file=sys.stderr,
                    flush=True,
                )
            return True  # go on

        def phase_finish(self, phase_name: str) -> None:
            self._steps.pop(phase_name, None)
            if terminal and not self._steps:
                print("\r\033[K", end="", file=sys.stderr, flush=True)

    return Monitor()

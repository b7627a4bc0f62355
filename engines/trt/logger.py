"""TensorRT's messages and progress while it parses and builds."""

from __future__ import annotations

import sys
import time
from types import ModuleType
from typing import Any

__all__ = ["log", "monitor"]


def log(trt: ModuleType) -> Any:
    """Return a logger that keeps the messages of the parser and the builder, so that an error can say why."""
    base: Any = trt.ILogger  # a class without types

    class Log(base):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.lines: list[str] = []  # warnings and errors
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity <= trt.ILogger.Severity.WARNING:
                self.lines.append(message)
            if severity <= trt.ILogger.Severity.ERROR:
                self.errors.append(message)

        def said(self) -> str:
            """Return the last errors, or the last warnings if there are no errors."""
            return "; ".join((self.errors or self.lines)[-3:])

    return Log()


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

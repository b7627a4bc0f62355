"""Dispatcher of ``foveate VERB ...``. The module of a verb is imported only when the verb is used.

Exit codes: 0 success, 1 failure, 2 wrong usage, 130 Ctrl-C, 141 output lost its reader, 143 SIGTERM.

Output that cannot be written (stdout closed, disk full) is a failure for verbs whose output is the result.
Verbs that make something else (``_MAKERS``) continue without it.
"""

from __future__ import annotations

import argparse
import difflib
import errno
import importlib
import sys
from collections.abc import Callable, Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any, NoReturn

from foveate.engines.errors import UserError, install_extra, unknown
from foveate.runtime.cli.signals import terminable
from foveate.runtime.cli.streams import Output, guarded

__all__ = ["VERBS", "Parser", "main", "perform", "refuse_empty"]

VERBS = {
    "build": (
        "foveate.export.build",
        "build a bundle from a checkpoint and a pruning method (on a host; needs torch)",
    ),
    "compile": ("foveate.runtime.cli.compile", "compile a bundle for this machine"),
    "run": ("foveate.runtime.cli.run", "answer one question about images or videos"),
    "chat": ("foveate.runtime.cli.chat", "talk about images, turn by turn"),
    "check": ("foveate.runtime.cli.check", "test that a compiled bundle answers correctly here"),
    "inspect": ("foveate.runtime.cli.inspect", "show what a bundle holds"),
    "watch": ("foveate.runtime.cli.watch", "answer a question about a camera's newest frame, repeatedly"),
    "bench": ("foveate.runtime.cli.bench", "measure the speed of a compiled bundle on this machine"),
    "plan": ("foveate.jetson.planner.plan", "estimate memory and speed on a device before anything is built"),
    "doctor": ("foveate.jetson.device.doctor", "show what is on this machine and what is wrong with it"),
    "pack": (
        "foveate.jetson.deployment.pack",
        "pack a bundle and the runtime into one file, for a device without network",
    ),
    "deploy": (
        "foveate.jetson.deployment.deploy",
        "copy a bundle to a device over ssh and get its first answer",
    ),
    "power": (
        "foveate.jetson.device.power_modes",
        "show the power mode of a Jetson, or run a command in another one",
    ),
}

_MAKERS = ("build", "compile", "deploy", "pack", "power")  # verbs whose output is not their result
_ENDLESS = ("chat", "watch")  # verbs that must stop when nobody reads their output

_INTERRUPTED, _PIPE_CLOSED = 130, 141  # 128 + the signal's number, as in shells


class Parser(argparse.ArgumentParser):
    """argparse with our form of error message: one line that points to the help.

    Empty values are refused, because Path("") is the current directory. Arguments that take free text have
    ``type=str``.
    """

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        refuse_empty(self)

    def error(self, message: str) -> NoReturn:
        """Raise UserError for wrong usage."""
        raise UserError(f"{message} | {self.prog} --help lists the options", code=2)

    # The base class has overloads for a namespace of any type.
    def parse_args(self, args: Iterable[str] | None = None, namespace: Any = None) -> Any:
        """Return the parsed arguments. Raises UserError for options that are not known."""
        found, extra = self.parse_known_args(args, namespace)
        if wrong := [each.split("=")[0] for each in extra if each.startswith("-")]:
            known = {each.strip("-"): each for each in self._option_string_actions}
            near = difflib.get_close_matches(wrong[0].strip("-"), known, n=1, cutoff=0.5)
            hint = f"did you mean {known[near[0]]}? | " if near else ""
            raise UserError(f"unknown option {wrong[0]} | {hint}{self.prog} --help lists the options", code=2)
        if extra:
            got = f"got {len(extra)} more than expected: {' '.join(extra)}"
            raise UserError(f"too many arguments | {got} | put quotes around text with blanks", code=2)
        return found


def refuse_empty(parser: argparse.ArgumentParser) -> None:
    """Make ``parser`` refuse empty values, except of arguments that have ``type=str``."""
    parser.register("type", None, _filled)
    parser.register("type", Path, lambda text: Path(_filled(text)))


def _filled(text: str) -> str:
    if not text:
        raise argparse.ArgumentTypeError("the value is empty")
    return text


def main(argv: list[str] | None = None) -> int:
    """Run one verb and return its exit code."""
    argv = sys.argv[1:] if argv is None else argv
    return perform(argv[0] if argv else "", lambda: _dispatch(argv))


def perform(verb: str, work: Callable[[], int]) -> int:
    """Do the work of a verb and return its exit code.

    SIGTERM, Ctrl-C and output that cannot be written are treated as the module's docstring says. A
    ``UserError`` is printed to stderr, without a traceback.
    """

    def raises(error: OSError) -> bool:
        return verb in _ENDLESS or (isinstance(error, BrokenPipeError) and verb not in _MAKERS)

    # guard the streams first: the pipe that `terminable` opens would otherwise take a closed stream's number
    with guarded(raises) as output, terminable():
        return _after_lost_output(verb, _outcome(verb, work, output), output.fault)


def _outcome(verb: str, work: Callable[[], int], output: Output) -> int:
    """Do the work and return its exit code. Print a ``UserError`` to stderr, without a traceback."""
    try:
        code = _work_or_extra(verb, work)
        output.flush()
        return code
    except UserError as error:
        print(f"foveate: {' '.join(str(error).split())}", file=sys.stderr)
        return error.code
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return _INTERRUPTED
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:  # from any argument: no file of that name can exist
            got = f"{str(error.filename)[:60]}... of {len(str(error.filename))} characters"
            print(f"foveate: the name of a file is too long | got {got} | shorten it", file=sys.stderr)
        elif error is not output.fault:
            raise
        return 1


def _work_or_extra(verb: str, work: Callable[[], int]) -> int:
    """Do the work and return its exit code. Raises UserError where ``build`` lacks a library of its extra."""
    try:
        return work()
    except ModuleNotFoundError as error:
        missing = (error.name or "").split(".")[0]
        if verb != "build" or missing in ("", "foveate"):
            raise
        raise UserError(
            f"`foveate build` needs the export extra | {missing} is not installed "
            f"| {install_extra('export')} (Python 3.11 or newer)"
        ) from error


def _after_lost_output(verb: str, code: int, fault: OSError | None) -> int:
    """Return the exit code after output was lost. ``fault`` is the error that writing it raised, if any."""
    if fault is None:
        return code
    if isinstance(fault, BrokenPipeError):
        return code if verb in _MAKERS else _PIPE_CLOSED
    remedy = (
        "the work was done"
        if verb in _MAKERS and code == 0
        else "redirect it to a file on a disk with room, or leave the redirection out"
    )
    reason = "it is closed" if fault.errno == errno.EBADF else (fault.strerror or str(fault)).lower()
    print(f"foveate: cannot write to the standard output | {reason} | {remedy}", file=sys.stderr)
    return code if verb in _MAKERS else code or 1


def _dispatch(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(_help(), file=sys.stdout if argv else sys.stderr)
        return 0 if argv else 2
    if argv[0] in ("-V", "--version"):
        print(f"foveate {version('foveate')}")
        return 0
    verb, *rest = argv
    if verb not in VERBS:
        raise unknown("verb", verb, VERBS)
    return importlib.import_module(VERBS[verb][0]).main(rest)


def _help() -> str:
    verbs = "\n".join(f"  {name:<10}{text}" for name, (_, text) in VERBS.items())
    return (
        f"usage: foveate VERB ...\n\n{verbs}\n\n"
        "`foveate VERB --help` explains the options of a verb; `foveate --version` prints the version."
    )

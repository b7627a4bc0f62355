"""``foveate power``: shows the power mode, or runs a command in another one and then restores everything.

``foveate power --mode MAXN_SUPER --clocks -- foveate run ...`` prints each step, does it with sudo, and runs
the command. Then it restores mode and clocks, also after Ctrl-C and if the command fails. With ``--dry-run``
it only prints the steps.

The order matters, since ``jetson_clocks`` locks to the limits of the current mode. Clocks are stored before
the mode changes and locked after it. They are restored before the mode is.

Sudo is never asked for a password, since a step that waits for one would leave the board half changed. Where
it wants one, ``sudo -v`` comes first.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from foveate.engines.errors import UserError, unknown
from foveate.jetson.device.inventory import power_mode, power_modes
from foveate.jetson.device.system import System
from foveate.runtime.cli import Parser, options
from foveate.runtime.measuring.energy import Rails

__all__ = ["main", "performance", "reboots", "steps"]

_REBOOT = "is likely to want a reboot: its mask of TPCs differs (inferred, not tried on a board)"

Do = Callable[[list[str]], None]


Step = tuple[list[str], "list[str] | None"]
"""A command, and the command that undoes it, or None."""


def steps(system: System, mode: str | None, clocks: bool, store: str) -> list[Step]:
    """Return the steps in the order in which they are done. They are undone in the same order.

    ``store`` is the file for the stored clocks. Raises UserError if this machine has no such mode.
    """
    todo: list[Step] = []
    if clocks:
        todo.append((["jetson_clocks", "--store", store], ["jetson_clocks", "--restore", store]))
    if mode is not None:
        now = power_mode(system)
        if now is None:
            raise UserError(
                "no power mode to change | nvpmodel does not answer | this is for Jetsons: foveate doctor"
            )
        known = {each.name: each.id for each in power_modes(system)}
        if mode not in known:
            raise unknown("power mode", mode, known)
        if known[mode] != now.id:
            todo.append((["nvpmodel", "-m", str(known[mode])], ["nvpmodel", "-m", str(now.id)]))
    if clocks:
        todo.append((["jetson_clocks"], None))
    return todo


def reboots(system: System) -> list[str]:
    """Return the modes that are likely to want a reboot, from the current one.

    They have another mask of TPCs. This is inferred from NVIDIA's tables, it was not tried on a board.
    """
    now, modes = power_mode(system), power_modes(system)
    masks = {mode.id: mode.tpc_mask for mode in modes}
    mask = masks.get(now.id) if now else None
    return [mode.name for mode in modes if mask and mode.tpc_mask and mode.tpc_mask != mask]


def _sudo(command: list[str]) -> None:
    """Run ``command`` as root. Raises UserError if it fails.

    A mode change that needs a reboot asks on stdin. It gets no answer and fails.
    """
    full = command if os.geteuid() == 0 else ["sudo", "-n", *command]
    try:
        done = subprocess.run(
            full,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            env=os.environ | {"LC_ALL": "C"},
        )
    except FileNotFoundError as error:
        raise UserError(
            f"cannot run {command[0]} | it is not installed | this is for Jetsons: foveate doctor"
        ) from error
    said = f"{done.stdout} {done.stderr}"
    if done.returncode and "password is required" in said:
        raise UserError(
            f"{' '.join(full)} failed | sudo wants a password "
            f"| sudo -v first, then this again; or by hand: sudo {' '.join(command)}"
        )
    if done.returncode or "NVPM ERROR" in said:
        shown = " ".join(said.split()) or f"exit code {done.returncode}"
        raise UserError(f"{' '.join(full)} failed | {shown} | run it yourself; it may need a reboot")


@contextlib.contextmanager
def performance(
    mode: str | None = None,
    clocks: bool = False,
    *,
    system: System | None = None,
    do: Do = _sudo,
    say: Callable[[str], None] = options.say,
) -> Iterator[None]:
    """Run the block in ``mode`` and, with ``clocks``, at locked clocks. Then restore both.

    ``say`` gets each command before ``do`` runs it. If a step fails, the steps before it are undone. Raises
    UserError.
    """
    with tempfile.TemporaryDirectory() as folder:
        undo: list[list[str]] = []
        try:
            if mode in reboots(system or System()):
                say(f"{mode} {_REBOOT}")
            for command, back in steps(system or System(), mode, clocks, str(Path(folder, "clocks.conf"))):
                _step(command, do, say)
                undo += [back] if back else []
            yield
        finally:
            _undo(undo, do, say)


def _undo(commands: list[list[str]], do: Do, say: Callable[[str], None]) -> None:
    """Run all commands, even if one fails. Raises the first error."""
    errors = []
    for command in commands:
        try:
            _step(command, do, say)
        except UserError as error:
            errors.append(error)
    if errors:
        raise errors[0]


def _step(command: list[str], do: Do, say: Callable[[str], None]) -> None:
    say(f"$ {' '.join(command)}")
    do(command)


def main(argv: list[str]) -> int:
    """Run the command and return its exit status. Raises UserError."""
    parser = Parser(
        prog="foveate power",
        description="Show the power mode, or run a command in another one and then restore it. "
        "Where sudo asks for a password, run `sudo -v` first.",
    )
    parser.add_argument(
        "--mode",
        help="Run the command in this power mode, a name in /etc/nvpmodel.conf (default: the current one).",
    )
    parser.add_argument(
        "--clocks",
        action="store_true",
        help="Lock the clocks to the mode's limits with jetson_clocks (default: they follow the load).",
    )
    parser.add_argument(
        "--json",
        action="store_true",
        help="Print mode, modes and watts as one JSON document (default: as text).",
    )
    parser.add_argument("--dry-run", action="store_true", help="Only print the steps (default: do them).")
    parser.add_argument(
        "command",
        type=str,
        nargs=argparse.REMAINDER,
        metavar="-- COMMAND ...",
        help="The command to run in that mode. Without --mode and --clocks nothing is run: the current "
        "mode and power are shown.",
    )
    args = parser.parse_args(argv)
    command = args.command[1:] if args.command[:1] == ["--"] else args.command
    system = System()
    if args.mode is None and not args.clocks:
        print(json.dumps(_facts(system)) if args.json else "\n".join(_lines(system)))
        return 0
    if args.json:
        raise UserError(
            "--json has nothing to print | expected neither --mode nor --clocks beside it | leave --json out",
            code=2,
        )
    if args.dry_run:
        todo = steps(system, args.mode, args.clocks, "FILE")
        if args.mode in reboots(system):
            print(f"# {args.mode} {_REBOOT}")
        every = [*(do for do, _ in todo), command or ["..."], *(back for _, back in todo if back)]
        print("\n".join(f"$ {' '.join(each)}" for each in every))
        return 0
    if not command:
        raise UserError(
            "no command to run | expected one after -- | foveate power --mode M -- foveate run ...",
            code=2,
        )
    with performance(args.mode, args.clocks, system=system):
        return subprocess.run(command, check=False).returncode


def _facts(system: System) -> dict[str, Any]:
    """Return mode, modes and watts as plain data, with None for what this machine does not tell."""
    now, rails = power_mode(system), Rails(system.root)
    return {
        "mode": asdict(now) if now else None,
        "modes": [asdict(mode) for mode in power_modes(system)],
        "reboot_likely": reboots(system),
        "watts": rails() if rails else None,
    }


def _lines(system: System) -> list[str]:
    now, rails = power_mode(system), Rails(system.root)
    if now is None and not rails:
        return ["no power modes and no power monitors on this machine"]
    lines = [f"{'mode':<18}{now.name} ({now.id})"] if now else []
    if modes := power_modes(system):
        lines.append(f"{'modes':<18}{', '.join(f'{mode.name} ({mode.id})' for mode in modes)}")
    lines += [f"{mode:<18}{_REBOOT}" for mode in reboots(system)]
    return lines + ([f"{name:<18}{watts:8.2f} W" for name, watts in rails().items()] if rails else [])

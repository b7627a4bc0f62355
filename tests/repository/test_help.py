"""Every option of every verb and script is explained in a sentence that states its default."""

from __future__ import annotations

import argparse
import re
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from foveate.runtime import cli

SCRIPTS = Path(__file__).parents[2] / "scripts"
NO_OPTIONS = {"generate"}
OTHERS_OPTIONS = {"lmms_eval_foveate"}  # lmms-eval's own
COMMANDS = sorted({path.stem for path in SCRIPTS.glob("*.py")} - NO_OPTIONS - OTHERS_OPTIONS)


class ParsingError(Exception):
    """Raised in place of parsing; holds the parser."""


@pytest.fixture
def stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(parser: argparse.ArgumentParser, *_: object, **__: object) -> None:
        raise ParsingError(parser)

    for name in ("parse_args", "parse_known_args", "parse_intermixed_args"):
        monkeypatch.setattr(argparse.ArgumentParser, name, stop)


def parser_of_verb(verb: str) -> argparse.ArgumentParser:
    with pytest.raises(ParsingError) as found:
        cli._dispatch([verb])
    return found.value.args[0]


def parser_of_script(
    command: str, monkeypatch: pytest.MonkeyPatch, *arguments: str
) -> argparse.ArgumentParser:
    monkeypatch.setattr(sys, "argv", [f"{command}.py", *arguments])
    with pytest.raises(ParsingError) as found:
        runpy.run_path(str(SCRIPTS / f"{command}.py"), run_name="__main__")
    return found.value.args[0]


def faults(parser: argparse.ArgumentParser) -> Iterator[str]:
    """Yield what is wrong with the help of each option."""
    for action in parser._actions:
        if action.help == argparse.SUPPRESS or isinstance(action, argparse._HelpAction):
            continue
        name, text = "/".join(action.option_strings) or action.dest, action.help or ""
        shown = text % (vars(action) | {"prog": parser.prog}) if text else ""
        if not shown.endswith(".") or not shown[:1].isupper():
            yield f"{name}: not a sentence: {shown!r}"
        stated = re.search(r"default: (.+)\)\.$", shown)
        if action.default not in (None, False, [], argparse.SUPPRESS) and not stated:
            yield f"{name}: its default {action.default!r} is not stated: {shown!r}"
        if stated and isinstance(action.default, int | float) and action.default is not False:
            number = re.match(r"-?\d[\d.]*(e-?\d+)?", stated[1])
            if number and float(number[0]) != action.default:
                yield f"{name}: states {stated[1]!r}, is {action.default!r}"
        if action.option_strings and action.required and "required" not in shown.lower():
            yield f"{name}: does not say that it is required: {shown!r}"


@pytest.mark.parametrize("verb", cli.VERBS)
def test_options_of_a_verb(verb: str, stopped: None) -> None:
    assert not list(faults(parser_of_verb(verb)))


@pytest.mark.parametrize("command", COMMANDS)
def test_options_of_a_script(command: str, stopped: None, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not list(faults(parser_of_script(command, monkeypatch)))


def test_options_of_a_benchmark(stopped: None, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not list(faults(parser_of_script("accuracy", monkeypatch, "pope")))


def test_a_command_without_options_has_no_parser() -> None:
    for command in NO_OPTIONS:
        assert "argparse" not in (SCRIPTS / "generated" / f"{command}.py").read_text(encoding="utf-8")


def test_faults_are_noticed() -> None:
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--a", help="number of things")
    parser.add_argument("--b", type=int, default=3, help="Number of things.")
    parser.add_argument("--c", type=int, default=3, help="Number of things (default: 4).")
    parser.add_argument("--d", required=True, help="Number of things.")
    parser.add_argument("--e", type=int, default=3, help="Number of things (default: 3).")
    assert [line.split(":")[0] for line in faults(parser)] == ["--a", "--b", "--c", "--d"]

"""The commands in scripts/ are thin: what they do is in the packages beside them."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"
COMMANDS = sorted(SCRIPTS.glob("*.py"))
MODULES = sorted(SCRIPTS.glob("*/**/*.py"))


def imported(path: Path) -> set[str]:
    """Return the first names of all modules that the file imports."""
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module]
    return {name.partition(".")[0] for name in names}


@pytest.mark.parametrize("command", COMMANDS, ids=lambda path: path.stem)
def test_a_command_is_short_and_leads_to_a_package(command: Path) -> None:
    packages = {folder.name for folder in SCRIPTS.iterdir() if (folder / "__init__.py").is_file()}
    assert len(command.read_text(encoding="utf-8").splitlines()) <= 40
    assert imported(command) & packages


def test_no_script_imports_a_command() -> None:
    flat = {command.stem for command in COMMANDS}
    assert MODULES
    assert not {path.name: found for path in (*COMMANDS, *MODULES) if (found := imported(path) & flat)}

"""docs/offline.md has a row for every dependency that is declared and for every verb."""

from __future__ import annotations

import re
from pathlib import Path

import tomllib

from foveate.runtime import cli

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/offline.md").read_text()


def first_cells(title: str) -> str:
    section = PAGE.split(f"## {title}")[1].split("\n## ")[0]
    return "\n".join(re.findall(r"^\| ([^|]+) \|", section, flags=re.MULTILINE))


def test_every_verb_has_a_row():
    assert set(re.findall(r"`(\w+)`", first_cells("Which verb speaks with whom"))) == set(cli.VERBS)


def test_every_dependency_has_a_row():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"].values()
    declared = [*project["dependencies"], *(name for extra in extras for name in extra)]
    names = {re.match(r"[\w-]+", requirement)[0] for requirement in declared}
    assert len(names) > 15
    assert not names - set(re.findall(r"`([\w-]+)`", first_cells("Telemetry of what we depend on")))

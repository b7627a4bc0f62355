"""One thing has one word: the glossary's retired words are not used in code and documentation."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROWS = [line.split("|")[1:4] for line in (ROOT / "docs/glossary.md").read_text().splitlines()]
RETIRED = [word.strip() for row in ROWS[6:] if len(row) == 3 for word in row[2].split(",") if word.strip()]
EXEMPT = (
    "CHANGELOG.md",
    "docs/glossary.md",
    "tests/repository/test_words.py",  # names two of them
    "docs/decisions/0021-moved-files.txt",  # old names
    "calib/scenes/questions.py",  # sentences that scripts/shapes was trained on
    "scripts/shapes/",
    "jetson/data/measured.json",  # quotes its sources
)
OLD_FLAGS = re.compile(r"""["']--pictures?["']""")  # hidden aliases


def texts() -> list[str]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    names = (name for name in listed.stdout.split("\0") if name and not name.startswith(EXEMPT))
    kinds = (".py", ".md", ".toml", ".json", ".jinja", ".sh", ".service", ".txt")
    return [name for name in names if name.endswith(kinds) or "." not in Path(name).name]


def test_the_glossary_retires_words() -> None:
    assert "picture" in RETIRED and "remedies" in RETIRED


@pytest.mark.parametrize("word", RETIRED)
def test_retired_words_are_gone(word: str) -> None:
    used = re.compile(rf"(?<![a-z-]){re.escape(word)}", re.IGNORECASE)
    found = [
        f"{name}:{number}: {line.strip()[:100]}"
        for name in texts()
        for number, line in enumerate((ROOT / name).read_text().splitlines(), 1)
        if used.search(OLD_FLAGS.sub("", line))
    ]
    assert not found, "\n".join(found)

"""docs/troubleshooting.md quotes messages that the code has: a page that quotes an old one fails here."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/troubleshooting.md").read_text(encoding="utf-8")
FOLDERS = ("engines", "runtime", "jetson", "export")
OF_OTHERS = {"ERROR: No matching distribution found for foveate"}  # pip's own words


def quoted() -> list[str]:
    """The lines of the page's text blocks."""
    blocks = re.findall(r"^```text\n(.*?)^```", PAGE, flags=re.MULTILINE | re.DOTALL)
    return [line for block in blocks for line in block.splitlines()]


def strings(source: str) -> list[str]:
    """Every string of a module; an ellipsis stands for what an f-string fills in."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.JoinedStr):
            parts = (part.value if isinstance(part, ast.Constant) else "…" for part in node.values)
            found.append("".join(map(str, parts)))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.append(node.value)
    return found


def says(message: str, texts: list[str]) -> bool:
    """Tell whether some text has the fixed words of ``message``, in order."""
    pattern = re.compile(".*".join(map(re.escape, re.split(" *… *", message))), flags=re.DOTALL)
    return any(pattern.search(text) for text in texts)


@pytest.fixture(scope="module")
def texts() -> list[str]:
    files = (file for folder in FOLDERS for file in (ROOT / folder).rglob("*.py"))
    return [
        (ROOT / "Makefile").read_text(encoding="utf-8"),
        *(text for file in files for text in strings(file.read_text(encoding="utf-8"))),
    ]


@pytest.mark.parametrize("message", [line for line in quoted() if line not in OF_OTHERS])
def test_a_quoted_message_is_one_that_the_code_has(message, texts):
    assert says(message, texts), f"docs/troubleshooting.md quotes {message!r}, which no module says any more"


def test_a_message_that_nobody_says_is_noticed(texts):
    assert len(quoted()) > 15
    assert not says("wrong kept", texts)
    assert says("a … b", ["a is not b"]) and not says("a … b", ["b is not a"])

"""A store of answers, so that a run that was stopped continues where it was.

Answers belong to a version, a short hash of everything that determines them: the bundle's graphs, weights and
settings, the code of the runtime, and that of the scenes. Comments and docstrings do not count. Answers of
other versions are kept.
"""

from __future__ import annotations

import ast
import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from foveate.runtime.bundle import loading as bundle

__all__ = ["ROOT", "Log", "code_version", "version"]

ROOT = Path(__file__).parents[2]
_ANSWERS = ("foveate.runtime.pipeline", "foveate.engines.ort.backend", "foveate.calib.scenes.questions")
# recorded by torch: no engine reads it, and other versions of torch round differently
_SKIPPED = ("golden.npz",)


def version(path: Path) -> str:
    """Return the version of the answers that the bundle at ``path`` gives with the current code."""
    facts = bundle.load(path).manifest.to_json()
    facts["files"] = {name: facts["files"][name] for name in sorted(facts["files"]) if name not in _SKIPPED}
    del facts["name"]
    text = json.dumps(facts, sort_keys=True) + code_version(*_ANSWERS)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


class Log:
    """JSON records in a file, one per line, found by the values of some fields.

    A truncated last line is dropped.
    """

    def __init__(self, path: Path, fields: tuple[str, ...]) -> None:
        self.path, self._fields = path, fields
        self._known: dict[tuple, dict[str, Any]] = {}
        text = path.read_text(encoding="utf-8") if path.is_file() else ""
        if not text.endswith("\n") and text:
            text = text[: text.rfind("\n") + 1]
            path.write_text(text, encoding="utf-8")
        for line in text.splitlines():
            self._remember(json.loads(line))

    def get(self, *key: Any) -> dict[str, Any] | None:
        return self._known.get(key)

    def __len__(self) -> int:
        return len(self._known)

    def add(self, records: Iterable[dict[str, Any]]) -> None:
        """Append records to the file at once, in one piece."""
        records = list(records)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write("".join(json.dumps(record) + "\n" for record in records))
        for record in records:
            self._remember(record)

    def _remember(self, record: dict[str, Any]) -> None:
        self._known[tuple(record[field] for field in self._fields)] = record


def code_version(*names: str) -> str:
    """Hash the modules ``names`` and what they import of foveate, without comments and docstrings."""
    trees: dict[str, str] = {}
    wanted = list(names)
    while wanted:
        name = wanted.pop()
        file = _source(name)
        if name not in trees and file is not None:
            tree = ast.parse(file.read_text(encoding="utf-8"))
            wanted += _imported(tree)
            trees[name] = ast.dump(_bare(tree))
    return hashlib.sha256(json.dumps(sorted(trees.items())).encode()).hexdigest()[:12]


def _source(name: str) -> Path | None:
    package, *parts = name.split(".")
    place = ROOT.joinpath(*parts)
    found = (place.with_suffix(".py"), place / "__init__.py") if package == "foveate" and parts else ()
    return next((file for file in found if file.is_file()), None)


def _imported(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _bare(tree: ast.Module) -> ast.Module:
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            node.body = [part for part in body if not _is_text(part)]
    return tree


def _is_text(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )

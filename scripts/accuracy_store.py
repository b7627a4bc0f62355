"""What was built and answered already, so that a run that was stopped goes on where it was, and no answer stands for
another's: bundles are built again when the code that builds them changed, and answers belong to a version.

A version is a short hash of all that decides an answer: the bundle's graphs, weights and settings, the code of the
runtime and that of the scenes. Comments and docstrings do not count. Answers of other versions stay where they are.
"""

from __future__ import annotations

import ast
import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from foveate.export import methods, models
from foveate.export.build import build
from foveate.runtime import bundle
from foveate.runtime.compile import compile_bundle

__all__ = ["Log", "code_version", "options_of", "ready_bundle", "slug", "version"]

ROOT = Path(__file__).parents[1]
_ANSWERS = ("foveate.runtime.pipeline", "foveate.engines.ort", "foveate.calib.scenes")
_SKIPPED = (
    "golden.npz",
)  # recorded by torch: no engine reads it, and other versions of torch round differently


def slug(variant: str) -> str:
    """A variant as part of a file name."""
    return variant.replace(":", ".").replace(",", ".").replace("=", "-")


def options_of(variant: str) -> tuple[str, dict[str, str]]:
    """``sppruner:rho=0.7,mu=1`` is the method sppruner with two options."""
    name, _, options = variant.partition(":")
    return name, dict(pair.split("=", 1) for pair in options.split(",") if pair)


def ready_bundle(model: str, variant: str, work: Path) -> Path:
    """The variant's bundle in float32, compiled; built when it is not there or was built by other code."""
    name, options = options_of(variant)
    out, stamp = work / slug(variant), work / f"{slug(variant)}.code"
    code = code_version(*_builders(name))
    if not ((out / "bundle.json").is_file() and stamp.is_file() and stamp.read_text() == code):
        build(models.load(model), methods.load(name, options), out, precision="fp32", dialects=["ort"])
        stamp.write_text(code)
    compile_bundle(out)
    return out


def version(path: Path) -> str:
    """Of the answers that the bundle at ``path`` gives with the code as it is."""
    facts = bundle.load(path).manifest.to_json()
    facts["files"] = {name: facts["files"][name] for name in sorted(facts["files"]) if name not in _SKIPPED}
    del facts["name"]
    text = json.dumps(facts, sort_keys=True) + code_version(*_ANSWERS)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


class Log:
    """Records of JSON, one a line, by the values of some of their fields. A line that a crash cut short is dropped."""

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
        """To the file at once, in one piece."""
        records = list(records)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write("".join(json.dumps(record) + "\n" for record in records))
        for record in records:
            self._remember(record)

    def _remember(self, record: dict[str, Any]) -> None:
        self._known[tuple(record[field] for field in self._fields)] = record


def code_version(*names: str) -> str:
    """Hash of the modules ``names`` and of what they import of foveate, without comments and docstrings."""
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


def _builders(method: str) -> list[str]:
    """Modules that decide what a bundle of ``method`` (a pair: ``a+b``) holds: all of export but other methods' files."""
    files = (path.relative_to(ROOT).with_suffix("") for path in (ROOT / "export").rglob("*.py"))
    others = {f"foveate.export.methods.{name}" for name in methods.names()} - {
        f"foveate.export.methods.{name}" for name in method.split("+")
    }
    modules = (".".join(("foveate", *(part for part in file.parts if part != "__init__"))) for file in files)
    return sorted(set(modules) - others)


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

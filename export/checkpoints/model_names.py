"""The values of ``--model``: the name of a model, a directory, or a hub id.

They are checked without importing a family's module, since torch takes seconds to import.
"""

from __future__ import annotations

import ast
import os
import re
from pathlib import Path

from foveate.engines.errors import UserError, unknown

__all__ = ["INSTEAD", "checkpoints", "families", "is_path_or_id", "require", "require_path_or_id"]

INSTEAD = "name a checkpoint's directory, or use --load-format dummy (random weights)"
_MODELS = Path(__file__).parents[1] / "models"


def families() -> list[str]:
    """Return the names of all model families: the names of the files in ``models``."""
    return sorted(path.stem for path in _MODELS.glob("[!_]*.py"))


def checkpoints() -> dict[str, str]:
    """Return the family of each known model name.

    The names are the keys of ``CHECKPOINTS`` in the families' files, which are read as text.
    """
    found: dict[str, str] = {}
    for family in families():
        tree = ast.parse((_MODELS / f"{family}.py").read_text(encoding="utf-8"))
        for node in tree.body:
            if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                if any(isinstance(target, ast.Name) and target.id == "CHECKPOINTS" for target in targets):
                    found |= dict.fromkeys(ast.literal_eval(node.value), family)
    return found


def is_path_or_id(name: str) -> bool:
    """Return True if ``name`` looks like a directory or a hub id, not like the name of a model."""
    return "/" in name or os.sep in name or name.startswith((".", "~")) or Path(name).is_dir()


def require(name: str) -> None:
    """Raise UserError (code 2) unless ``name`` is a model, a directory or formed as a hub id.

    The hub is not asked whether the id exists.
    """
    known = checkpoints()
    if name in known:
        return
    if not is_path_or_id(name):
        error = unknown("model", name, known)
        raise UserError(f"{error} (or give a hub id, org/name, or a checkpoint's directory)", code=error.code)
    require_path_or_id(name)


def require_path_or_id(name: str) -> None:
    """Raise UserError (code 2) unless ``name`` is a directory or formed as a hub id."""
    path = Path(name).expanduser()
    if path.is_dir():
        return
    if path.exists():
        raise UserError(
            f"{name} is a file | expected a directory in Hugging Face's format | give the directory it is in",
            code=2,
        )
    if not re.fullmatch(r"\w[\w.-]*/[\w.-]+", name):
        raise UserError(
            f"no directory {name} | got no such path | {INSTEAD}, or give a hub id (org/name)", code=2
        )

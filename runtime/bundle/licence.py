"""The licences of what is in a bundle, as ``bundle.json`` has them: by the role of what they are for
("model", "adapter", "clip"), its ``source``, the licence's ``id``, ``name`` and ``link`` where the model card
has them, its ``files`` in the bundle, and whether it allows commercial ``use`` under its terms ("commercial",
"non-commercial", "unknown")."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["lines", "notes"]

_USE = {"commercial": "commercial use under its terms", "non-commercial": "not for commercial use"}


def lines(licence: Mapping[str, Any]) -> list[str]:
    """A line for each licence."""
    found = []
    for role, each in licence.items():
        words = ", ".join(str(each[key]) for key in ("id", "name", "link") if each.get(key)) or "not given"
        use = _USE.get(each.get("use"), "whether for commercial use is not known")
        files = f", {', '.join(each['files'])}" if each.get("files") else ""
        found.append(f"{role} {each['source']}: {words} ({use}){files}")
    return found


def notes(licence: Mapping[str, Any]) -> list[str]:
    """What users are told unasked: of licences that allow no commercial use, or of which that is not
    known."""
    told = {role: each for role, each in licence.items() if each.get("use") != "commercial"}
    return [f"licence of the {line}; read it before use" for line in lines(told)]

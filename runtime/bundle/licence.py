"""Licences of a bundle's parts, as ``bundle.json`` has them.

The key is the part's role ("model", "adapter", "clip", "pruner"). The entry has its ``source``; the
licence's ``id``, ``name`` and ``link`` if the model card gives them; its ``files`` in the bundle; and whether
it allows commercial ``use`` under its terms ("commercial", "non-commercial", "unknown").
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["lines", "notes"]

_USE = {"commercial": "commercial use under its terms", "non-commercial": "not for commercial use"}


def lines(licence: Mapping[str, Any]) -> list[str]:
    """Return one line of text per licence."""
    found = []
    for role, each in licence.items():
        words = ", ".join(str(each[key]) for key in ("id", "name", "link") if each.get(key)) or "not given"
        use = _USE.get(each.get("use"), "whether for commercial use is not known")
        files = f", {', '.join(each['files'])}" if each.get("files") else ""
        found.append(f"{role} {each['source']}: {words} ({use}){files}")
    return found


def notes(licence: Mapping[str, Any]) -> list[str]:
    """Return what users are told unasked: licences that do not allow commercial use, or may not allow it."""
    told = {role: each for role, each in licence.items() if each.get("use") != "commercial"}
    return [f"licence of the {line}; read it before use" for line in lines(told)]

"""Licences of a bundle's parts, as ``bundle.json`` has them.

The key is the part's role: "model", "adapter", "clip" or "pruner".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

__all__ = ["Licence", "Use", "lines", "notes"]

Use = Literal["commercial", "non-commercial", "unknown"]

_USE: dict[Use, str] = {
    "commercial": "commercial use under its terms",
    "non-commercial": "not for commercial use",
    "unknown": "whether for commercial use is not known",
}


@dataclass(frozen=True)
class Licence:
    """The licence of one part.

    ``source`` is where the part comes from. ``use`` says whether the terms allow commercial use. ``files``
    are its texts in the bundle. ``id``, ``name`` and ``link`` are those of the model card, if it has them.
    """

    source: str
    use: Use = "unknown"
    files: tuple[str, ...] = ()
    id: str | None = None
    name: str | None = None
    link: str | None = None


def lines(licence: Mapping[str, Licence]) -> list[str]:
    """Return one line of text per licence."""
    found = []
    for role, each in licence.items():
        words = ", ".join(filter(None, (each.id, each.name, each.link))) or "not given"
        files = f", {', '.join(each.files)}" if each.files else ""
        found.append(f"{role} {each.source}: {words} ({_USE[each.use]}){files}")
    return found


def notes(licence: Mapping[str, Licence]) -> list[str]:
    """Return what users are told unasked: licences that do not allow commercial use, or may not allow it."""
    told = {role: each for role, each in licence.items() if each.use != "commercial"}
    return [f"licence of the {line}; read it before use" for line in lines(told)]

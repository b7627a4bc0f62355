"""The licence of a checkpoint: the fields of its model card, and its licence files.

The card is ``README.md``; its front matter is YAML between two lines of ``---``. An identifier tells only
whether the licence allows commercial use under its terms. This is no legal advice: every user must read the
licence.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from foveate.export.checkpoints.files import CARD, LICENCES, matching
from foveate.export.checkpoints.tensor_files import Folder
from foveate.runtime.bundle.licence import Licence, Use

__all__ = ["of"]

_FRONT = re.compile(r"\A\ufeff?\s*---[ \t]*\r?\n(.*?)\r?\n---[ \t]*(?:\r?\n|\Z)", re.DOTALL)
_LONGEST = 1 << 20  # bytes of a card or a licence file
_FIELDS = {"license": "id", "license_name": "name", "license_link": "link"}  # a card's, and bundle.json's

_NON_COMMERCIAL = re.compile(
    r"(?:^|[-_. ])nc(?:[-_. ]|$)|non-?commercial|research|amlr|deepfloyd-if", re.IGNORECASE
)
_COMMERCIAL = re.compile(
    r"apache-2\.0|mit|(?:new-)?bsd(?:-\w+)*|bsl-1\.0|isc|zlib|ncsa|unlicense|wtfpl|0bsd|afl-3\.0"
    r"|artistic-2\.0|ecl-2\.0|epl-\d\.0|eupl-1\.\d|ms-pl|osl-3\.0|postgresql|ofl-1\.1|lppl-1\.3c|mpl-2\.0"
    r"|[al]?gpl(?:-\d\.\d)?|gfdl|cc|cc0-1\.0|cc-by(?:-sa|-nd)?-\d\.\d|pddl|odbl|odc-by|c-uda"
    r"|cdla-(?:permissive|sharing)-\d\.0|(?:bigscience-|bigcode-|creativeml-)?openrail(?:-m|\+\+)?"
    r"|bigscience-bloom-rail-1\.0|llama[234](?:\.\d)?|gemma"
)
"""The hub's identifiers of licences that allow commercial use under their terms."""


def of(folder: Folder, role: str) -> tuple[Licence, dict[str, Path]]:
    """Return the entry of ``folder`` under ``licence`` in bundle.json, and its licence files.

    The files are given by their names in a bundle.
    ``role`` is the role of the folder's weights, such as "model".
    """
    said = _front_matter(folder.file(CARD))
    names = sorted(path.name for path in folder.path.iterdir() if path.is_file())
    files = {
        f"licences/{role}/{name}": folder.path / name
        for name in matching(names, LICENCES)
        if (folder.path / name).stat().st_size <= _LONGEST
    }
    values = {key: said[field] for field, key in _FIELDS.items() if said.get(field)}
    use = _use(values.get("id", ""), values.get("name", ""))
    return Licence(folder.label, use, tuple(files), **values), files


def _use(id: str, name: str) -> Use:
    """Return "commercial" if the licence allows that under its terms, else "non-commercial" or "unknown"."""
    if _NON_COMMERCIAL.search(f"{id} {name}"):
        return "non-commercial"
    known = [each for each in id.lower().split(", ") if each]
    return "commercial" if known and all(map(_COMMERCIAL.fullmatch, known)) else "unknown"


def _front_matter(card: Path | None) -> dict[str, str]:
    """Return the card's fields about the licence as text. A card with broken YAML is read line by line."""
    if card is None:
        return {}
    with card.open("rb") as file:
        front = _FRONT.match(file.read(_LONGEST).decode(errors="replace"))
    if front is None:
        return {}
    try:
        found = yaml.load(front[1], Loader=yaml.BaseLoader)  # makes texts, lists and mappings alone
    except (yaml.YAMLError, RecursionError):
        found = dict(re.findall(r"^(license\w*):[ \t]*['\"]?(.*?)['\"]?[ \t]*\r?$", front[1], re.MULTILINE))
    fields = found if isinstance(found, dict) else {}
    return {key: _text(fields[key]) for key in _FIELDS if key in fields}


def _text(value: Any) -> str:
    """Return a field as text: a list joined by commas, and "unknown" and similar words as an empty text."""
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return "" if text.strip().lower() in ("", "unknown", "none", "null", "~") else text.strip()

"""The command that builds a bundle again, from a ``bundle.json`` of an older format.

Such a file is read as plain JSON, in which anything may be missing or of another type.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["advice", "command"]

_ALL_DIALECTS = {"native", "ort", "primitive"}
_PRECISIONS = {"decoder": "", "head": "head-", "vision": "vision-", "prefill": "prefill-"}
_UNSET = ("compute dtype", "as the checkpoint has them")


def advice(data: Mapping[str, Any], root: Path) -> str:
    """Return what to do with the bundle in ``root``, whose ``bundle.json`` has the contents ``data``."""
    found = command(data, root)
    return f"build it again: {found}" if found else "build it again with foveate build"


def command(data: Mapping[str, Any], root: Path) -> str | None:
    """Return the command, or None if the model or the method is not known.

    It has every option of the build that ``bundle.json`` records, and the statistics of a calibration if
    they lie beside the bundle. The samples of a calibration are not recorded.
    """
    source, method = _object(data, "source"), _object(data, "method")
    if not isinstance(source.get("model"), str) or not isinstance(method.get("name"), str):
        return None
    words = ["foveate", "build", "--model", source["model"], "--method", method["name"]]
    for name, value in _object(method, "options").items():
        if value is not None:
            words += ["--set", f"{name}={_text(value)}"]
    dummy = source.get("load_format") == "dummy"
    if dummy:
        words += ["--load-format", "dummy"]
    given = {
        "adapter": source.get("adapter"),
        "clip": _object(_object(data, "licence"), "clip").get("source"),
        "pruner": None if dummy else source.get("pruner"),
    }
    for name, value in given.items():
        words += [f"--{name}", value] if isinstance(value, str) else []
    for part, prefix in _PRECISIONS.items():
        if (kind := _object(data, "precision").get(part)) not in (None, *_UNSET):
            words += [f"--{prefix}precision", _text(kind)]
    dialects = _object(data, "dialects")
    if dialects and set(dialects) != _ALL_DIALECTS:
        words += ["--dialects", ",".join(dialects)]
    if most := _object(data, "image").get("max_pixels"):
        words += ["--max-pixels", _text(most)]
    if (parts := _parts(data)) > 1:
        words += ["--llm-parts", str(parts)]
    statistics = root.absolute().with_name(f"{root.absolute().name}.statistics.safetensors")
    if statistics.is_file():  # a calibration left it there
        words += ["--statistics", str(statistics)]
    return shlex.join([*words, "--out", str(root)])


def _parts(data: Mapping[str, Any]) -> int:
    """Return the number of graphs of the language model if it is larger than what the method's cuts make."""
    stages, cuts = data.get("stages"), data.get("cuts")
    graphs = [str(stage).partition(".")[0] for stage in stages] if isinstance(stages, list) else []
    needed = 1 + len(cuts) if isinstance(cuts, list) else 1
    return graphs.count("llm") if graphs.count("llm") > needed else 1


def _object(data: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    found = data.get(key)
    return found if isinstance(found, Mapping) else {}


def _text(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)

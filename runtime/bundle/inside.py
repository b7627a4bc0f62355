"""Checks of a bundle from an untrusted source: every file that it names must lie inside it and have a hash.

``bundle.json`` and the graphs contain file names, which are opened when a bundle is compiled, packed or sent.
A name that leads elsewhere is refused before anything is read or written there.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from foveate.engines.errors import UserError
from foveate.engines.trt.onnx_dims import external_files

__all__ = ["require_external_data", "require_names", "require_no_links"]

_GRAPH = re.compile(r"\w+(\.\w+)*", re.ASCII)


def require_names(
    manifest: Path,
    name: str,
    graphs: Mapping[str, str],
    stages: Iterable[str],
    dialects: Mapping[str, Mapping[str, Any]],
    files: Iterable[str],
) -> None:
    """Raise UserError if the ``manifest`` names a path outside the bundle, or a graph that it does not list.

    ``name`` is the bundle's name. ``graphs`` maps graph names to the names in their specs. ``stages``,
    ``dialects`` and ``files`` are those of the manifest.
    """
    listed = set(files)
    golden = [entry["golden"] for entry in dialects.values() if "golden" in entry]
    for file in (*listed, *golden):
        inside = PurePosixPath(file)
        if inside.is_absolute() or ".." in inside.parts or "\\" in file:
            raise _distrusted(manifest, "names a file outside the bundle", file)
    for entry in dialects.values():
        for file in (*entry["files"].values(), *entry.get("prefill", {}).values()):
            if file not in listed:
                raise _distrusted(manifest, "names a graph that is not among its files", file)
    for key, graph in (*graphs.items(), *((stage, stage) for stage in stages)):
        if key != graph or not _GRAPH.fullmatch(key):
            raise _distrusted(
                manifest, "names a graph as no build does", graph if key == graph else f"{key}, {graph}"
            )
    if name in (".", "..") or set(name) & set("/\\\0"):
        raise _distrusted(manifest, "gives the bundle a name that is a path", name)


def require_no_links(root: Path, files: Iterable[str]) -> None:
    """Raise UserError if a link leads out of the bundle at ``root``.

    Checks its ``files`` and its folder of engines.
    """
    home = root.resolve()
    for name in (*files, "engines"):
        if not (root / name).resolve().is_relative_to(home):
            raise UserError(
                f"{root / name} leads out of the bundle | it is a link to {(root / name).resolve()} "
                "| copy the bundle with what its links point to (cp -rL), if you trust it"
            )


def require_external_data(graph: Path, files: Iterable[str]) -> None:
    """Raise UserError if tensors of the ONNX file ``graph`` lie outside the bundle's ``files``."""
    try:
        strange = external_files(graph.read_bytes()) - set(files)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{graph.name} is no ONNX file | {error} | copy or build the bundle again") from error
    if strange:
        raise _distrusted(graph, "reads files that bundle.json does not list", ", ".join(sorted(strange)))


def _distrusted(file: Path, what: str, got: str) -> UserError:
    return UserError(f"{file} {what} | got {got} | do not trust this bundle")

"""Checks of a bundle from an untrusted source: every file that it names must lie inside it and have a hash.

``bundle.json`` and the graphs contain file names, which are opened when a bundle is compiled, packed or sent.
A name that leads elsewhere is refused before anything is read or written there.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from foveate.engines.errors import UserError
from foveate.engines.trt.onnx_dims import external_files
from foveate.runtime.bundle.manifest import Manifest

__all__ = ["require_external_data", "require_names", "require_no_links"]

_GRAPH = re.compile(r"\w+(\.\w+)*", re.ASCII)


def require_names(file: Path, manifest: Manifest) -> None:
    """Raise UserError if the manifest in ``file`` names what the bundle does not have.

    That is a path outside the bundle, a graph without a file, or a stage without a graph.
    """
    listed = set(manifest.files)
    golden = [entry.golden for entry in manifest.dialects.values()]
    for name in (*listed, *golden):
        inside = PurePosixPath(name)
        if inside.is_absolute() or ".." in inside.parts or "\\" in name:
            raise _distrusted(file, "names a file outside the bundle", name)
    for entry in manifest.dialects.values():
        for name in entry.paths:
            if name not in listed:
                raise _distrusted(file, "names a graph that is not among its files", name)
    for name in manifest.dialects:
        if not _GRAPH.fullmatch(name):
            raise _distrusted(file, "names a dialect as no build does", name)
    stages = [stage for method in manifest.methods for stage in method.stages]
    for stage in stages:
        if stage not in manifest.graphs or any(
            stage not in each.files for each in manifest.dialects.values()
        ):
            raise _distrusted(file, "names a stage that has no graph", stage)
    graphs = [(key, spec.name) for key, spec in manifest.graphs.items()]
    for key, graph in (*graphs, *zip(stages, stages, strict=True)):
        if key != graph or not _GRAPH.fullmatch(key):
            raise _distrusted(
                file, "names a graph as no build does", graph if key == graph else f"{key}, {graph}"
            )
    if manifest.name in ("", ".", "..") or set(manifest.name) & set("/\\\0"):
        raise _distrusted(file, "gives the bundle a name that is a path", manifest.name)


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

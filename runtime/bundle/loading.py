"""Bundle: a folder with everything that a device needs. Its contents are listed in ``bundle.json``.

Input: a folder. Output: a ``Bundle`` whose files are those that were built: present, of the right size,
unchanged.

Files are checked at every load, large ones by their stamps (``bundle.stamps``), which are kept in
``engines/.checked.json``.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from foveate.engines.disk import files, locks
from foveate.engines.errors import UserError
from foveate.runtime.bundle import rebuild, stamps
from foveate.runtime.bundle.arrays import array
from foveate.runtime.bundle.inside import require_external_data, require_names, require_no_links
from foveate.runtime.bundle.manifest import FEATURES, FORMAT, Manifest
from foveate.runtime.bundle.typed_json import MisfitError

__all__ = ["UNFINISHED", "Bundle", "load", "stored_files", "write_manifest"]

_MANIFEST = "bundle.json"
UNFINISHED = ".unfinished"
"""A file that stands in a folder while a build replaces the bundle there file by file.

It holds a JSON list of the paths of the new files.
"""
_STAMPS = Path("engines", ".checked.json")


@dataclass(frozen=True)
class Bundle:
    """A folder, and what its ``bundle.json`` says."""

    path: Path
    manifest: Manifest

    def file(self, name: str) -> Path:
        """Return the path of a file of the bundle."""
        return self.path / name

    def graph_file(self, graph: str, dialect: str) -> Path:
        """Return the ONNX file of a graph in ``dialect``."""
        return self.path / self.manifest.dialects[dialect].files[graph]

    def golden(self, dialect: str) -> Path:
        """Return the file with the reference answers of graphs in ``dialect``."""
        return self.path / self.manifest.dialects[dialect].golden

    def require_own_weights(self, dialect: str) -> None:
        """Raise UserError if a graph of the ``dialect`` reads weights from unlisted files."""
        for file in self.manifest.dialects[dialect].paths:
            require_external_data(self.path / file, self.manifest.files)

    def embeddings(self) -> np.ndarray:
        """Return the token embedding [V, D], memory-mapped."""
        return array(self.path / "embed_tokens.npy", mapped=True)


def load(
    path: str | os.PathLike[str], *, full: bool = False, progress: Callable[[str], None] | None = None
) -> Bundle:
    """Read and verify the bundle in folder ``path``.

    ``full`` hashes every file whatever its stamp. ``progress`` gets the name of each large file before it is
    hashed. Raises UserError if the folder is not a bundle, was made by a newer foveate, or if a file is
    missing or changed.
    """
    root = Path(path)
    bundle = Bundle(root, _read_manifest(root))
    _verify(bundle, full, progress)
    return bundle


def write_manifest(path: str | os.PathLike[str], values: Mapping[str, Any]) -> Manifest:
    """Hash every file in the folder ``path``, write its ``bundle.json``, and return the manifest.

    ``values`` is ``bundle.json`` as JSON; its ``files`` may be absent.
    """
    root = Path(path)
    described = {
        name: {"size": (root / name).stat().st_size, "sha256": files.sha256(root / name)}
        for name in stored_files(root)
    }
    manifest = Manifest.from_json({**values, "files": described})
    text = json.dumps(manifest.to_json(), indent=1)
    (root / _MANIFEST).write_text(text + "\n", encoding="utf-8")
    return manifest


def stored_files(root: Path) -> list[str]:
    """Return the files that a bundle consists of, as POSIX paths.

    These are all files except ``bundle.json``, the lock, and compiled engines.
    """
    apart = {_MANIFEST, UNFINISHED, locks.inside(root).name}
    found = (p.relative_to(root) for p in root.rglob("*") if p.is_file())
    return sorted(p.as_posix() for p in found if p.parts[0] != "engines" and p.as_posix() not in apart)


def _read_manifest(root: Path) -> Manifest:
    file = root / _MANIFEST
    if not file.is_file():
        got = "there is no bundle.json in it" if root.is_dir() else "no such directory"
        if (root / UNFINISHED).exists():
            got = "the build that wrote into it was cut off"
        raise UserError(
            f"{root} is no bundle | {got} | give the directory that `foveate build` wrote", code=2
        )
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(data, dict):
            raise MisfitError("the whole file is no object")
        _require_readable(root, data)
        manifest = Manifest.from_json(data)
    except (ValueError, RecursionError) as error:  # no JSON, no UTF-8, too deep, or another shape
        raise UserError(f"{file} is damaged | {error} | copy or build the bundle again") from error
    require_names(file, manifest)
    return manifest


def _require_readable(root: Path, data: Mapping[str, Any]) -> None:
    """Raise UserError if ``data`` is of another format, or needs what this foveate does not have."""
    version = data.get("format")
    if type(version) is not int:
        raise MisfitError(f"format is {version!r}, expected a whole number")
    if version < FORMAT:
        raise UserError(
            f"{root} was made by an older foveate | its format is {version}, this foveate reads {FORMAT} "
            f"| {rebuild.advice(data, root)}"
        )
    if version > FORMAT:
        raise UserError(
            f"{root} was made by a newer foveate | its format is {version}, this foveate reads {FORMAT} "
            "| upgrade foveate on this machine"
        )
    needed = data.get("requires")
    if strange := [
        text for text in map(str, needed if isinstance(needed, list) else ()) if text not in FEATURES
    ]:
        raise UserError(
            f"{root} needs a newer foveate "
            f"| it requires {', '.join(strange)}, which this foveate does not know "
            "| upgrade foveate on this machine, or build the bundle with the foveate of this machine"
        )


def _verify(bundle: Bundle, full: bool, progress: Callable[[str], None] | None) -> None:
    root = bundle.path
    require_no_links(root, bundle.manifest.files)
    fault = stamps.first_fault(root, bundle.manifest.files, root / _STAMPS, full=full, progress=progress)
    if fault is None:
        return
    if fault.words is None:
        raise UserError(f"{root} is incomplete | {fault.name} is missing | copy or build the bundle again")
    raise UserError(f"{fault.name} has changed | {fault.words} | copy or build the bundle again")

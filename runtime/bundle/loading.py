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
from dataclasses import dataclass, field, fields, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np

from foveate.engines.disk import files, locks
from foveate.engines.errors import UserError
from foveate.engines.spec import GraphSpec
from foveate.runtime.bundle import stamps
from foveate.runtime.bundle.arrays import array
from foveate.runtime.bundle.inside import require_external_data, require_names, require_no_links

__all__ = ["FORMAT", "UNFINISHED", "Bundle", "Manifest", "load", "stored_files", "write_manifest"]

FORMAT = 2

_MANIFEST = "bundle.json"
UNFINISHED = ".unfinished"
"""A file that stands in a folder while a build replaces the bundle there file by file.

It holds a JSON list of the paths of the new files.
"""
_STAMPS = Path("engines", ".checked.json")
_APPENDING = ("primitive",)  # dialects whose graphs return only the new rows of their kv caches


@dataclass(frozen=True)
class Manifest:
    """The contents of ``bundle.json``. ``graphs`` leave the compute dtype open; ``dialects`` set it."""

    name: str
    family: str
    source: dict[str, Any]
    method: dict[str, Any]  # name, options, position_mode, position_mode_inside
    precision: dict[str, str]  # decoder, head, vision
    stages: tuple[str, ...]
    graphs: dict[str, GraphSpec]
    # name -> dtype; files {graph: file}; prefill, likewise, if any; golden: file of the reference answers;
    # widened {graph: dtype}: the dtype inside graphs that compute in another one
    dialects: dict[str, dict[str, Any]]
    num_visual_tokens: int
    grid: tuple[int, int]
    decoder: dict[str, int]
    image: dict[str, Any]
    prompt: dict[str, Any]
    files: dict[str, dict[str, Any]]  # path in the bundle -> size, sha256
    cuts: tuple[int, ...] = ()  # decoder layers before which in-LLM pruners work
    # by stage, as points of ``llm.budget``: its budget, and the most rows it keeps if that is another number
    budgets: dict[str, list[list[float]]] = field(default_factory=dict)
    limits: dict[str, list[list[float]]] = field(default_factory=dict)
    # sizes of the vision encoder: its kind, and what ``measuring.costs`` counts with
    vision: dict[str, Any] | None = None
    # the checkpoint's settings of generation (``llm.generation``)
    generation: dict[str, Any] = field(default_factory=dict)
    licence: dict[str, Any] = field(default_factory=dict)  # by role, see ``bundle.licence``
    # by graph, the largest recorded values: {"layer", "at", "value", "edge"}
    ranges: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    format: int = FORMAT

    def to_json(self) -> dict[str, Any]:
        data = {each.name: getattr(self, each.name) for each in fields(self)}
        data["graphs"] = {name: spec.to_json() for name, spec in self.graphs.items()}
        return {"format": data.pop("format"), **data}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Manifest:
        """Return the manifest in ``data``. Fields that this version does not know are left out.

        Raises KeyError, TypeError or ValueError if it is damaged.
        """
        # optional fields: older bundles do not have them
        later = ("cuts", "budgets", "limits", "vision", "generation", "licence", "ranges")
        values = {
            each.name: data[each.name] for each in fields(cls) if each.name in data or each.name not in later
        }
        values["graphs"] = {name: GraphSpec.from_json(spec) for name, spec in data["graphs"].items()}
        values["stages"] = tuple(data["stages"])
        values["grid"], values["cuts"] = tuple(data["grid"]), tuple(data.get("cuts", ()))
        return cls(**values)

    @property
    def position_mode(self) -> str:
        return self.method.get("position_mode", "compact")

    @property
    def position_mode_inside(self) -> str:
        """Return the position mode of the rows after a cut of the decoder."""
        return self.method.get("position_mode_inside") or "keep"

    @property
    def segments(self) -> list[tuple[str, str | None]]:
        """Return the graphs of the language model in order, each with the pruner after it.

        The graphs are ``llm``, or ``llm.0`` and so on.
        """
        following = zip_longest(self.stages, self.stages[1:], fillvalue="")
        return [
            (name, behind if behind.startswith("pruner.") else None)
            for name, behind in following
            if name.partition(".")[0] == "llm"
        ]

    def spec(self, graph: str, dialect: str) -> GraphSpec:
        """Return the graph's interface in ``dialect``: with its dtype, and its way of treating kv caches."""
        spec = self.graphs[graph].typed(self.dialects[dialect]["dtype"])
        return spec.appending() if dialect in _APPENDING and spec.in_place else spec

    def forms(self, graph: str, dialect: str) -> list[tuple[GraphSpec, str]]:
        """Return the forms of a graph that are compiled, each with its file.

        These are the graph itself and, if the bundle has one, its form for prefill
        (``engines.prefill_switch``), whose spec is named ``<graph>.prefill``.
        """
        spec, kinds = self.spec(graph, dialect), self.dialects[dialect]
        found = [(spec, kinds["files"][graph])]
        if graph in kinds.get("prefill", {}):
            found.append((replace(spec, name=f"{graph}.prefill"), kinds["prefill"][graph]))
        return found


@dataclass(frozen=True)
class Bundle:
    path: Path
    manifest: Manifest

    def file(self, name: str) -> Path:
        return self.path / name

    def graph_file(self, graph: str, dialect: str) -> Path:
        return self.path / self.manifest.dialects[dialect]["files"][graph]

    def golden(self, dialect: str) -> Path:
        """Return the file with the reference answers of graphs in ``dialect``."""
        return self.path / self.manifest.dialects[dialect].get("golden", "golden.npz")

    def require_own_weights(self, dialect: str) -> None:
        """Raise UserError if a graph of the ``dialect`` reads weights from unlisted files."""
        for graph in self.manifest.dialects[dialect]["files"]:
            for _, file in self.manifest.forms(graph, dialect):
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

    ``values`` are the fields of ``bundle.json`` except ``format`` and ``files``, as in JSON.
    """
    root = Path(path)
    described = {
        name: {"size": (root / name).stat().st_size, "sha256": files.sha256(root / name)}
        for name in stored_files(root)
    }
    manifest = Manifest.from_json({"format": FORMAT, **values, "files": described})
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
        version = data["format"]
        if isinstance(version, int) and version < FORMAT:
            raise UserError(
                f"{root} was made by an older foveate "
                f"| its format is {version}, this foveate reads {FORMAT} | {_rebuild(data)}"
            )
        if isinstance(version, int) and version > FORMAT:
            raise UserError(
                f"{root} was made by a newer foveate "
                f"| its format is {version}, this foveate reads {FORMAT} "
                "| upgrade foveate on this machine"
            )
        manifest = Manifest.from_json(data)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        what = f"{type(error).__name__}: {error}"
        raise UserError(f"{file} is damaged | {what} | copy or build the bundle again") from error
    graphs = {name: spec.name for name, spec in manifest.graphs.items()}
    require_names(file, manifest.name, graphs, manifest.stages, manifest.dialects, manifest.files)
    return manifest


def _rebuild(data: Mapping[str, Any]) -> str:
    """Return what to do with a bundle of an older format."""
    return (
        f"build it again: foveate build --model {data['source']['model']} --method {data['method']['name']}"
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

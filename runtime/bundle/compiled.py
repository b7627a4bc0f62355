"""Compiled engines of a bundle: their folders, what they depend on, and whether this machine may load them.

``engines/<key>/`` holds a backend's compiled files and ``engine.json``::

    {"target": "onnxruntime",
     "machine": {...},                             # facts that the engine depends on (``Backend.machine``)
     "dialect": "ort",
     "options": {...},
     "sources": {"llm.ort.onnx": sha256, "weights/llm.data": sha256, ...},
     "workarounds": {"llm": [...], ...},           # in words: what a graph needed, and what was reported
     "self_test": {"ok": true, "findings": [...]}, # or {"not_run": why}; see ``compiling.job``
     "files": {"llm.onnx": {"size": ..., "sha256": ...}, ...}}

An engine is refused with the reason, and never loaded, if it was made from other files or for another
machine, or if its own files have changed. Its files are checked like a bundle's (``bundle.stamps``); their
stamps are kept in ``engines/<key>/.checked.json``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from foveate.engines.backend import Machine
from foveate.engines.engine import Engine
from foveate.engines.errors import UserError
from foveate.engines.prefill_switch import ByRows
from foveate.engines.targets import TARGETS, backend
from foveate.runtime.bundle import stamps, typed_json
from foveate.runtime.bundle.loading import Bundle
from foveate.runtime.bundle.manifest import StoredFile

__all__ = [
    "CompiledEngine",
    "choose",
    "compile_command",
    "compiled_engines",
    "compiled_engines_in",
    "load_engine",
    "load_engines",
    "sources",
]


_Fact = str | int | float | bool | None | tuple[str, ...]
"""A value in ``machine`` and ``options``: their lists hold texts."""


@dataclass(frozen=True)
class CompiledEngine:
    """One folder of compiled graphs, with the contents of its ``engine.json``."""

    path: Path = field(metadata={"checked": object})
    target: str
    machine: Machine = field(metadata={"checked": dict[str, _Fact]})
    dialect: str
    options: dict[str, Any] = field(metadata={"checked": dict[str, _Fact]})
    sources: dict[str, str]
    workarounds: dict[str, list[str]] = field(metadata={"checked": dict[str, tuple[str, ...]]})
    files: dict[str, dict[str, Any]] = field(metadata={"checked": dict[str, StoredFile]})
    self_test: dict[str, Any] = field(default_factory=dict, metadata={"checked": dict[str, object]})

    @property
    def key(self) -> str:
        """Name of the folder."""
        return self.path.name

    def write(self) -> None:
        """Write ``engine.json``."""
        data = asdict(self)
        del data["path"]
        (self.path / "engine.json").write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")

    def fault(
        self, bundle: Bundle, *, full: bool = False, progress: Callable[[str], None] | None = None
    ) -> str | None:
        """Return why this machine must not load the engine, or None.

        ``full`` hashes the compiled files whatever their stamps. ``progress`` gets the path of each large
        file before it is hashed.
        """
        made_from = sources(bundle, self.dialect) if self.dialect in bundle.manifest.dialects else None
        if self.sources != made_from:
            return "it was compiled from other files than the bundle holds now"
        engines = backend(self.target)
        if reason := engines.refused_dialect(self.dialect):
            return reason.replace(" | ", ": ")
        here = engines.machine(self.options)
        for name in self.machine.keys() | here.keys():
            made, have = self.machine.get(name), here.get(name)
            if made != have:
                return f"it was made for {name} {_show(made, have)}, this machine has {_show(have, made)}"
        say = (lambda name: progress(f"engines/{self.key}/{name}")) if progress else None
        stored = {name: StoredFile(entry["size"], entry["sha256"]) for name, entry in self.files.items()}
        fault = stamps.first_fault(self.path, stored, self._stamps, full=full, progress=say)
        if fault is None:
            return None
        if fault.words is None:
            return f"{fault.name} is missing"
        return f"{fault.name} has changed since it was compiled: {fault.words}"

    @property
    def _stamps(self) -> Path:
        return self.path / ".checked.json"

    def remember(self) -> None:
        """Keep the stamps of the compiled files. They were hashed when they were written."""
        stamps.remember(self.path, self.files, self._stamps)


def _show(value: Any, other: Any) -> str:
    """Return a value as text. Of two lists only the entries that ``other`` lacks are named."""
    if isinstance(value, list) and isinstance(other, list):
        return ", ".join(v for v in value if v not in other) or "less"
    return str(value)


def sources(bundle: Bundle, dialect: str) -> dict[str, str]:
    """Return the SHA-256 of the graphs of ``dialect`` and of all weights, by path."""
    kinds = bundle.manifest.dialects[dialect]
    return {
        name: entry.sha256
        for name, entry in bundle.manifest.files.items()
        if name in kinds.paths or name.startswith("weights/")
    }


def compiled_engines(bundle: Bundle) -> Iterator[CompiledEngine]:
    """Yield every compiled engine of the bundle, in the order of TARGETS and then by key.

    Raises UserError for a damaged record.
    """
    yield from compiled_engines_in(bundle.path)


def compiled_engines_in(folder: Path) -> list[CompiledEngine]:
    """Return the engines that ``compiled_engines`` yields for the bundle in ``folder``.

    Its manifest is not read.
    """
    found = []
    # hidden folders belong to compilations that are running or were killed
    for file in (folder / "engines").glob("[!.]*/engine.json"):
        try:
            data = json.loads(file.read_text(encoding="utf-8"))
            found.append(typed_json.read(CompiledEngine, _with_path(data, file.parent)))
        except (ValueError, RecursionError) as error:
            raise UserError(
                f"{file} is damaged | {error} | remove {file.parent} and compile again"
            ) from error
    order = list(TARGETS)
    return sorted(found, key=lambda p: (order.index(p.target) if p.target in order else 99, p.key))


def _with_path(data: object, path: Path) -> object:
    return {**data, "path": path} if isinstance(data, dict) else data


def choose(
    bundle: Bundle, engine: str | None = None, progress: Callable[[str], None] | None = None
) -> CompiledEngine:
    """Return the first engine that fits this machine.

    ``engine`` is a key or the beginning of one, for example a target. ``progress`` gets the path of each
    large file before it is hashed. Raises UserError if none fits.
    """
    every = list(compiled_engines(bundle))
    wanted = [made for made in every if engine is None or made.key.startswith(engine)]
    if not wanted:
        got = f"compiled are: {', '.join(made.key for made in every)}" if every else "nothing is compiled"
        what = f"no compiled engine {engine}" if engine else "no compiled engine"
        target = f" --target {engine}" if engine in TARGETS else ""
        raise UserError(f"{what} | {got} | foveate compile {bundle.path}{target}")
    faults = []
    for made in wanted:
        fault = _misfit(bundle, made, progress)
        if fault is None:
            return made
        faults.append((made, *fault))
    made, why, remedy = faults[-1]
    raise UserError(f"the engine {made.key} does not fit | {why} | {remedy}")


def _misfit(
    bundle: Bundle, made: CompiledEngine, progress: Callable[[str], None] | None
) -> tuple[str, str] | None:
    """Return why the engine cannot be run here and what to do about it, or None."""
    again = compile_command(bundle, made)
    if made.target not in TARGETS:
        return f"this foveate knows no target {made.target}", again
    try:
        fault = made.fault(bundle, progress=progress) or backend(made.target).cannot_run(made.machine)
    except UserError as error:  # the engine's library is not installed, or is broken
        *why, remedy = str(error).split(" | ")
        return ", ".join(why), remedy
    if not fault:
        return None
    *reasons, last = fault.split(" | ")
    return (", ".join(reasons), last) if reasons else (fault, again)


def compile_command(bundle: Bundle, made: CompiledEngine) -> str:
    """Return the command that compiles the engine again."""
    options = "".join(_flag(name, value) for name, value in made.options.items())
    return f"foveate compile {bundle.path} --target {made.target}{options}"


def _flag(name: str, value: Any) -> str:
    if value is None or value is False:
        return ""
    text = "" if value is True else f" {','.join(value) if isinstance(value, list) else value}"
    return f" --{name.replace('_', '-')}{text}"


def load_engines(bundle: Bundle, made: CompiledEngine, settings: Mapping[str, Any]) -> dict[str, Engine]:
    """Return the engine of every stage, by graph name.

    ``settings`` (``threads``) are added to the options of the compilation.
    """
    return {name: load_engine(bundle, made, name, settings) for name in bundle.manifest.stages}


def load_engine(bundle: Bundle, made: CompiledEngine, name: str, settings: Mapping[str, Any]) -> Engine:
    """Return the engine of one stage.

    It joins two engines if the bundle has another form of the graph for prefill.
    """
    forms = bundle.manifest.forms(name, made.dialect)
    options = {**made.options, **settings}
    engines = [backend(made.target).load(made.path, spec, options) for spec, _ in forms]
    return engines[0] if len(engines) == 1 else ByRows(*engines)

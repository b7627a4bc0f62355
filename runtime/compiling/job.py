"""Compilation of one bundle: its graphs one after another, then the self-test.

A graph that is refused, that fails or that answers wrongly is compiled again with known workarounds, in the
order of its backend's table. If none is left for one that is refused or fails, the next dialect is tried.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from foveate.engines.backend import Backend, Machine
from foveate.engines.disk.files import sha256
from foveate.engines.errors import NoMemoryError, RefusedError, UserError
from foveate.engines.workarounds import Workaround
from foveate.runtime.bundle.compiled import CompiledEngine, sources
from foveate.runtime.bundle.loading import Bundle
from foveate.runtime.compiling import self_test
from foveate.runtime.compiling.comparison import Finding
from foveate.runtime.compiling.polygraphy_commands import reduce_hint
from foveate.runtime.compiling.self_test import BrokenError

__all__ = ["Job", "Progress", "next_dialect"]

Progress = Callable[[str], None]
"""A function that gets one line of text about the progress."""


def next_dialect(name: str, target: str) -> Workaround:
    """Return the dialect ``name`` as the last workaround for a graph that is refused or fails."""
    return Workaround(f"dialect {name}", "the next one that the target takes", (target,), dialect=name)


@dataclass
class Job:
    """The compilation of one bundle into the folder ``work``.

    ``applied`` holds the workarounds in use by graph, ``notes`` what the compilation of each graph reported,
    ``tried`` the dialects in which a graph failed or was wrong.
    """

    bundle: Bundle
    backend: Backend
    machine: Machine
    options: dict[str, Any]
    work: Path
    dialect: str
    progress: Progress
    applied: dict[str, list[Workaround]] = field(default_factory=dict)
    notes: dict[str, list[str]] = field(default_factory=dict)
    tried: set[str] = field(default_factory=set)

    def compile(self, graphs: tuple[str, ...]) -> None:
        """Compile these graphs into ``work``, with workarounds for those that are refused.

        Raises UserError that names the graph and the method.
        """
        self.bundle.require_own_weights(self.dialect)
        waiting = list(graphs)
        while waiting:
            name = waiting[0]
            try:
                self._compile(name)
            except UserError as error:
                workaround = self._workaround(name, failed=True) if isinstance(error, RefusedError) else None
                if workaround is None:
                    raise self._explained(name, error) from error
                self.progress(f"{name} is refused: {', '.join(str(error).split(' | ')[:2])}")
                again = self._apply(workaround, name)
                waiting = [*again, *(each for each in waiting if each not in again)]
            else:
                waiting.pop(0)

    def _compile(self, name: str) -> None:
        """Compile one graph in each of its forms."""
        options, workarounds = self._options(name)
        for spec, file in self.bundle.manifest.forms(name, self.dialect):
            start = time.perf_counter()
            notes = self.backend.compile_graph(self.bundle.file(file), self.work, spec, options)
            self.notes[spec.name] = [*workarounds, *notes]
            size = sum(file.stat().st_size for file in self.work.iterdir() if file.stem == spec.name)
            seconds, told = time.perf_counter() - start, self._told(spec.name)
            self.progress(f"{spec.name:<16}{seconds:7.1f} s {size / 1e6:9.1f} MB{told}")

    def _explained(self, graph: str, error: UserError) -> UserError:
        """Return the error with the graph and the method, and with the advice for a known fault."""
        text = str(error)
        for known in self.backend.workarounds:
            if known.sign and known.sign in text:
                text = f"{text.rpartition(' | ')[0]} ({known.source}) | {known.advice}"
        return UserError(f"{graph} of {self.bundle.manifest.method.name}: {text}", code=error.code)

    def _told(self, graph: str) -> str:
        """Return what the backend reports of a compiled graph, as the end of a progress line."""
        facts = self.backend.describe(self.work, graph)
        if not facts:
            return ""
        layers = ", ".join(f"{count} {dtype}" for dtype, count in facts["layers"].items())
        memory = f", built within {facts['peak_bytes'] / 2**30:.2f} GiB" if facts["peak_bytes"] else ""
        if facts.get("scratch_bytes"):
            memory += f", {facts['scratch_bytes'] / 1e6:.1f} MB of scratch"
        return f"  layers: {layers}{memory}"

    def _options(self, graph: str) -> tuple[dict[str, Any], list[str]]:
        """Return the options for this graph's compilation, and the names of the workarounds among them."""
        options, names = dict(self.options), []
        for workaround in self.applied.get(graph, ()):
            options |= workaround.options
            names.append(workaround.name)
        return {**options, "workarounds": names} if names else options, names

    def write(self, tested: dict[str, Any]) -> CompiledEngine:
        """Write ``engine.json`` with ``tested`` as the outcome of the self-test."""
        files = {
            file.name: {"size": file.stat().st_size, "sha256": sha256(file)}
            for file in sorted(self.work.iterdir())
            if file.name != "engine.json" and not file.name.startswith(".")  # hidden: what runs leave
        }
        made = CompiledEngine(
            self.work,
            self.machine["target"],
            self.machine,
            self.dialect,
            self.options,
            sources(self.bundle, self.dialect),
            self.notes,
            files,
            tested,
        )
        made.write()
        return made

    def prove(self) -> None:
        """Run the self-test. While it fails, compile again with the next workaround.

        Raises UserError if none is left.
        """
        if reason := self._untestable():
            self._untested(reason)
            return
        while True:
            try:
                fault = self._first_fault()
            except NoMemoryError as error:  # what is compiled may be good, and took long
                self._untested(", ".join(str(error).split(" | ")[:2]))
                return
            if fault is None:
                return
            graph, failed = fault.graph, isinstance(fault, BrokenError)
            if isinstance(fault, BrokenError):
                what, seen = "fails", fault.why
            elif cause := self_test.not_finite(self.bundle, self.dialect, fault):
                raise cause
            else:
                what, seen = "is wrong", self_test.seen(fault)
            self.progress(f"{graph} {what}: {seen}")
            workaround = self._workaround(graph, failed)
            if workaround is None:
                tried = sum(map(len, self.applied.values())) or "no"
                raise UserError(
                    f"the graph {graph} {what} on this machine "
                    f"| {seen}, after {tried} workarounds "
                    "| nothing was written; compile for another target, or report it with `foveate doctor`"
                    + reduce_hint(self.bundle, self.machine["target"], self.dialect, graph)
                )
            self.compile(self._apply(workaround, graph))

    def _untested(self, reason: str) -> None:
        self.progress(f"self-test not run: {reason}")
        self.write({"not_run": reason})

    def _untestable(self) -> str | None:
        recorded = self.bundle.golden(self.dialect)
        if not recorded.is_file():
            return f"the bundle has no {recorded.name}"
        reason = self.backend.cannot_run(self.machine)
        return reason and reason.replace(" | ", ", ")

    def _first_fault(self) -> Finding | BrokenError | None:
        made = self.write({})
        findings = []
        try:
            for finding in self_test.replay(self.bundle, made):
                findings.append(finding)
                if not finding.ok:
                    return finding
        except BrokenError as error:
            return error.with_traceback(None)  # its frames hold the engines
        self.write({"ok": True, "findings": [asdict(finding) for finding in findings]})
        return None

    def _workaround(self, graph: str, failed: bool) -> Workaround | None:
        """Return the first workaround that was not tried on this graph and that would change something.

        For one that ``failed`` the next dialect is the last of them.
        """
        self.tried.add(self.dialect)
        known = [*self.backend.workarounds]
        if failed:
            known += [next_dialect(name, self.machine["target"]) for name in self.backend.dialects]
        tried = self.applied.get(graph, ())
        return next((each for each in known if each not in tried and self._changes(each)), None)

    def _changes(self, workaround: Workaround) -> bool:
        if workaround.advice:
            return False
        if workaround.dialect:
            return self._takes(workaround.dialect)
        return bool(workaround.flags) or not workaround.options.items() <= self.options.items()

    def _takes(self, dialect: str) -> bool:
        return (
            dialect not in self.tried
            and dialect in self.backend.dialects
            and dialect in self.bundle.manifest.dialects
        )

    def _apply(self, workaround: Workaround, graph: str) -> tuple[str, ...]:
        """Use ``workaround`` from now on. Return the graphs that have to be compiled again."""
        self.progress(f"trying: {workaround.name} ({workaround.source})")
        if not workaround.dialect:
            self.applied.setdefault(graph, []).append(workaround)
            return (graph,)
        self.dialect = workaround.dialect
        self.bundle.require_own_weights(self.dialect)
        self.applied = {name: [workaround] for name in self.bundle.manifest.stages}
        self.notes.clear()
        for file in self.work.iterdir():
            file.unlink()
        return self.bundle.manifest.stages

"""Compilation of one bundle: its graphs one after another, then the self-test.

A graph that answers wrongly is compiled again with known workarounds, in the order of its backend's table.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from foveate.engines.backend import Backend, Machine
from foveate.engines.disk.files import sha256
from foveate.engines.errors import UserError
from foveate.engines.workarounds import Workaround
from foveate.runtime.bundle.compiled import CompiledEngine, sources
from foveate.runtime.bundle.loading import Bundle
from foveate.runtime.compiling import self_test
from foveate.runtime.compiling.comparison import Finding
from foveate.runtime.compiling.polygraphy_commands import reduce_hint

__all__ = ["Job", "Progress"]

Progress = Callable[[str], None]
"""A function that gets one line of text about the progress."""


@dataclass
class Job:
    """The compilation of one bundle into the folder ``work``.

    ``applied`` holds the workarounds in use by graph, ``notes`` what the compilation of each graph reported.
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

    def compile(self, graphs: tuple[str, ...]) -> None:
        """Compile these graphs into ``work``. Raises UserError that names the graph and the method."""
        manifest = self.bundle.manifest
        self.bundle.require_own_weights(self.dialect)
        for name in graphs:
            options, workarounds = self._options(name)
            for spec, file in manifest.forms(name, self.dialect):
                start = time.perf_counter()
                try:
                    notes = self.backend.compile_graph(self.bundle.file(file), self.work, spec, options)
                except UserError as error:
                    method = manifest.method.name
                    raise UserError(f"{spec.name} of {method}: {error}", code=error.code) from error
                self.notes[spec.name] = [*workarounds, *notes]
                size = sum(file.stat().st_size for file in self.work.iterdir() if file.stem == spec.name)
                seconds, told = time.perf_counter() - start, self._told(spec.name)
                self.progress(f"{spec.name:<16}{seconds:7.1f} s {size / 1e6:9.1f} MB{told}")

    def _told(self, graph: str) -> str:
        """Return what the backend reports of a compiled graph, as the end of a progress line."""
        facts = self.backend.describe(self.work, graph)
        if not facts:
            return ""
        layers = ", ".join(f"{count} {dtype}" for dtype, count in facts["layers"].items())
        memory = f", built within {facts['peak_bytes'] / 2**30:.2f} GiB" if facts["peak_bytes"] else ""
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
            if file.name != "engine.json"
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
            self.progress(f"self-test not run: {reason}")
            self.write({"not_run": reason})
            return
        while wrong := self._first_wrong():
            if error := self_test.not_finite(self.bundle, self.dialect, wrong):
                raise error
            self.progress(f"{wrong.graph} is wrong: {self_test.seen(wrong)}")
            workaround = self._workaround(wrong.graph)
            if workaround is None:
                tried = sum(map(len, self.applied.values())) or "no"
                raise UserError(
                    f"the graph {wrong.graph} is wrong on this machine "
                    f"| {self_test.seen(wrong)}, after {tried} workarounds "
                    "| nothing was written; compile for another target, or report it with `foveate doctor`"
                    + reduce_hint(self.bundle, self.machine["target"], self.dialect, wrong.graph)
                )
            self._apply(workaround, wrong.graph)

    def _untestable(self) -> str | None:
        recorded = self.bundle.golden(self.dialect)
        if not recorded.is_file():
            return f"the bundle has no {recorded.name}"
        reason = self.backend.cannot_run(self.machine)
        return reason and reason.replace(" | ", ", ")

    def _first_wrong(self) -> Finding | None:
        made = self.write({})
        findings = []
        for finding in self_test.replay(self.bundle, made):
            findings.append(finding)
            if not finding.ok:
                return finding
        self.write({"ok": True, "findings": [asdict(finding) for finding in findings]})
        return None

    def _workaround(self, graph: str) -> Workaround | None:
        """Return the first workaround that was not tried on this graph and that would change something."""
        tried = self.applied.get(graph, ())
        known = self.backend.workarounds
        return next(
            (workaround for workaround in known if workaround not in tried and self._changes(workaround)),
            None,
        )

    def _changes(self, workaround: Workaround) -> bool:
        if workaround.dialect:
            return self._takes(workaround.dialect)
        return bool(workaround.flags) or not workaround.options.items() <= self.options.items()

    def _takes(self, dialect: str) -> bool:
        return (
            dialect != self.dialect
            and dialect in self.backend.dialects
            and dialect in self.bundle.manifest.dialects
        )

    def _apply(self, workaround: Workaround, graph: str) -> None:
        self.progress(f"trying: {workaround.name} ({workaround.source})")
        if workaround.dialect:
            self.dialect = workaround.dialect
            self.applied = {name: [workaround] for name in self.bundle.manifest.stages}
            self.compile(self.bundle.manifest.stages)
        else:
            self.applied.setdefault(graph, []).append(workaround)
            self.compile((graph,))

"""Compiles the graphs of a bundle into engines for this machine, and tests them.

Input: a bundle. Output: ``engines/<key>/`` inside it, written to a work folder and then renamed, so that a
killed run leaves no half-written engine. Before the rename the engines must reproduce the reference answers
of the build (``self_test``). A graph that answers wrongly is compiled again with the known workarounds. If
none helps, nothing is written.

The bundle's lock (``engines.disk.locks.inside``) is taken before the bundle is read. No build can replace the
bundle meanwhile, and a second compilation waits for the first.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from foveate.engines import targets
from foveate.engines.backend import Backend, Machine, Options
from foveate.engines.disk import files
from foveate.engines.errors import UserError, unknown
from foveate.runtime.bundle.compiled import CompiledEngine
from foveate.runtime.bundle.loading import Bundle, load
from foveate.runtime.compiling.job import Job, Progress, next_dialect
from foveate.runtime.compiling.work_folder import locked, work_folder
from foveate.runtime.llm.cache_rows import cache_rows, told

__all__ = ["compile_bundle"]


def compile_bundle(
    path: str | Path,
    target: str = "onnxruntime",
    *,
    options: Options | None = None,
    dialect: str | None = None,
    force: bool = False,
    self_test: bool = True,
    progress: Progress = lambda line: None,
) -> Path:
    """Compile every graph of the bundle at ``path`` for this machine. Return the folder with the engines.

    ``options`` are those of the target (its ``Option`` objects in ``engines.targets.TARGETS``). ``dialect``
    None stands for the best that the target takes. An engine that already fits is kept unless ``force`` is
    set. ``self_test`` False leaves the reference answers of the build unplayed. ``progress`` gets a line per
    graph. Raises UserError.
    """
    backend = targets.backend(target)
    chosen = targets.options_of(target, options or {})
    backend.machine(chosen)  # refuses wrong options before large files are hashed
    with locked(Path(path), progress):
        bundle = load(path, progress=lambda name: progress(f"checking {name}"))
        return _compile(bundle, backend, chosen, dialect, force, self_test, progress)


def _compile(
    bundle: Bundle,
    backend: Backend,
    options: dict[str, Any],
    dialect: str | None,
    force: bool,
    self_test: bool,
    progress: Progress,
) -> Path:
    """Compile a bundle whose lock the caller holds. See ``compile_bundle``."""
    if "max_context" in options:
        options["max_context"] = cache_rows(bundle.manifest, options["max_context"])
        progress(told(bundle.manifest, options["max_context"]))
    machine = backend.machine(options)
    asked, dialect = dialect, _dialect(bundle, backend, dialect)
    _require_precision(bundle, backend, machine)
    folder = bundle.path / "engines" / backend.key(machine)
    known = _existing(folder)
    if (
        known
        and not force
        and known.options == options
        and (known.dialect == dialect or (asked is None and _fell_back(backend, known)))
        and known.fault(bundle, progress=lambda name: progress(f"checking {name}")) is None
    ):
        progress(f"{folder} is up to date")
        return folder
    with work_folder(bundle) as work:
        job = Job(bundle, backend, machine, options, work, dialect, progress)
        job.compile(bundle.manifest.stages)
        job.prove() if self_test else job.write({"not_run": "it was not asked for"})
        work.chmod(0o755)  # mkdtemp makes folders that only their owner can read
        files.flush(work)
        files.put_folder(work, folder)
        if made := _existing(folder):
            made.remember()
    return folder


def _dialect(bundle: Bundle, backend: Backend, asked: str | None) -> str:
    """Return the dialect ``asked`` for, or else the best that the target takes and the bundle has.

    Raises UserError if there is none.
    """
    accepted = backend.dialects
    for name in (asked,) if asked else accepted:
        if name in accepted and name in bundle.manifest.dialects:
            return name
    for name in (asked,) if asked else bundle.manifest.dialects:
        if reason := backend.refused_dialect(name):
            raise UserError(f"{bundle.path} cannot be compiled in the dialect {name} | {reason}")
    if asked is not None and asked not in accepted:
        raise unknown("dialect of this target", asked, accepted)
    raise UserError(
        f"{bundle.path} lacks the dialect {asked or accepted[0]} "
        f"| it has {', '.join(bundle.manifest.dialects)}, this target takes {', '.join(accepted)} "
        f"| build the bundle with --dialects {asked or accepted[0]}"
    )


def _fell_back(backend: Backend, known: CompiledEngine) -> bool:
    """True if an engine is in its dialect because a graph was refused or wrong in a better one."""
    names = {each.name for each in backend.workarounds if each.dialect == known.dialect}
    names.add(next_dialect(known.dialect, known.target).name)
    return any(name in names for notes in known.workarounds.values() for name in notes)


def _require_precision(bundle: Bundle, backend: Backend, machine: Machine) -> None:
    kinds = bundle.manifest.precision.kinds
    if reason := backend.refusal(kinds, machine):
        raise UserError(
            f"{bundle.path} cannot be compiled for this GPU | {reason} "
            "| build the bundle with another --precision, or name GPUs that have it with --capability",
            code=2,
        )


def _existing(folder: Path) -> CompiledEngine | None:
    try:
        return CompiledEngine(path=folder, **json.loads((folder / "engine.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):  # there is no engine, or one in another format
        return None

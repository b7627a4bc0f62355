"""``foveate compile``: the graphs of a bundle become engines for this machine.

In: a bundle. Out: ``engines/<key>/`` in it, written aside and renamed: a killed run leaves no half engine.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from foveate.engines.errors import UserError, unknown
from foveate.runtime.bundle import Bundle, hash_file, load
from foveate.runtime.cli import Parser
from foveate.runtime.plans import TARGETS, Plan, backend, sources

__all__ = ["compile_bundle", "main"]

_ABANDONED = 24 * 3600  # seconds; older half engines are of runs that were killed


def compile_bundle(
    path: str | Path,
    target: str = "onnxruntime",
    provider: str | None = None,
    force: bool = False,
    *,
    accuracy_level: int = 4,
    progress: Callable[[str], None] = lambda line: None,
) -> Path:
    """Compile every graph of the bundle at ``path`` for this machine; the folder with the engines.

    ``provider`` is ONNX Runtime's, "cpu" (also None) or "cuda". ``accuracy_level`` is that of int4 products in ONNX
    Runtime: 4 rounds activations to int8 and is several times as fast, 1 computes in float32. ``progress`` gets a line
    per graph. An engine that already fits is left alone unless ``force``. Raises UserError.
    """
    module = backend(target)
    if accuracy_level not in (0, 1, 2, 3, 4):
        raise UserError(
            f"wrong accuracy level | got {accuracy_level}, expected 0 to 4 | leave it out for 4", code=2
        )
    options: dict[str, Any] = {"provider": provider or "cpu", "accuracy_level": accuracy_level}
    machine = module.machine(options)
    bundle = load(path, progress=lambda name: progress(f"checking {name}"))
    dialect = _dialect(bundle, module.DIALECTS)
    folder = bundle.path / "engines" / module.key(machine)
    known = _existing(folder)
    if known and not force and known.options == options and known.fault(bundle) is None:
        progress(f"{folder} is up to date")
        return folder
    folder.parent.mkdir(exist_ok=True)
    _sweep(folder.parent)
    work = Path(tempfile.mkdtemp(prefix=".compiling-", dir=folder.parent))
    remedies: dict[str, list[str]] = {}
    try:
        forms = [form for name in bundle.manifest.stages for form in bundle.manifest.forms(name, dialect)]
        for spec, file in forms:
            start = time.perf_counter()
            remedies[spec.name] = module.compile_graph(bundle.file(file), work, spec, options)
            size = sum(file.stat().st_size for file in work.iterdir() if file.stem == spec.name)
            progress(f"{spec.name:<16}{time.perf_counter() - start:7.1f} s {size / 1e6:9.1f} MB")
        files = {
            file.name: {"size": file.stat().st_size, "sha256": hash_file(file)}
            for file in sorted(work.iterdir())
        }
        Plan(work, target, machine, dialect, options, sources(bundle, dialect), remedies, files).write()
        work.chmod(0o755)  # mkdtemp's are for the owner alone
        _put(work, folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return folder


def _dialect(bundle: Bundle, accepted: tuple[str, ...]) -> str:
    for name in accepted:
        if name in bundle.manifest.dialects:
            return name
    raise unknown("dialect", accepted[0], bundle.manifest.dialects)


def _existing(folder: Path) -> Plan | None:
    try:
        return Plan(path=folder, **json.loads((folder / "engine.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):  # none, or one to replace
        return None


def _put(work: Path, folder: Path) -> None:
    """Rename ``work`` to ``folder``, in place of one that may be there."""
    old = work.with_name(f"{work.name}.old")
    if folder.exists():
        folder.rename(old)
    work.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def _sweep(engines: Path) -> None:
    for left in engines.glob(".compiling-*"):
        if time.time() - left.stat().st_mtime > _ABANDONED:
            shutil.rmtree(left, ignore_errors=True)


def _peak_memory() -> int | None:
    """Bytes of the largest process that compiled a graph; None where the system does not tell."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * unit


def main(argv: list[str]) -> int:
    parser = Parser(prog="foveate compile", description="Compile a bundle for this machine.")
    parser.add_argument("bundle", metavar="BUNDLE")
    parser.add_argument("--target", default="onnxruntime", help=f"one of {', '.join(TARGETS)}")
    parser.add_argument("--provider", help="of ONNX Runtime: cpu (the default) or cuda")
    parser.add_argument(
        "--accuracy-level",
        type=int,
        default=4,
        help="of int4 products in ONNX Runtime: 4 (int8 activations, fast) or 1 (float32)",
    )
    parser.add_argument("--force", action="store_true", help="compile although the engine is up to date")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    args = parser.parse_args(argv)
    start = time.perf_counter()
    folder = compile_bundle(
        args.bundle,
        args.target,
        args.provider,
        args.force,
        accuracy_level=args.accuracy_level,
        progress=lambda line: print(line, file=sys.stderr, flush=True),
    )
    seconds, peak = round(time.perf_counter() - start, 3), _peak_memory()
    if args.json:
        print(json.dumps({"engine": str(folder), "seconds": seconds, "peak_bytes": peak}))
    else:
        if peak:
            print(f"peak memory {peak / 2**30:.2f} GiB", file=sys.stderr)
        print(f'{folder}\nnext: foveate run {args.bundle} "What is in the picture?" --image FILE')
    return 0

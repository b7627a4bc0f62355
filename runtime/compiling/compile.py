"""``foveate compile``: compile the graphs of a bundle into engines for this machine, and test them.

Input: a bundle. Output: ``engines/<key>/`` inside it, written to a work folder and then renamed, so that a
killed run leaves no half-written engine. Before the rename the engines must reproduce the reference answers
of the build (``self_test``). A graph that answers wrongly is compiled again with the known workarounds. If
none helps, nothing is written.

The bundle's lock (``engines.disk.locks.inside``) is taken before the bundle is read. No build can replace the
bundle meanwhile, and a second compilation waits for the first.
"""

from __future__ import annotations

import contextlib
import errno
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from foveate.engines.disk import files, locks
from foveate.engines.errors import UserError, unknown
from foveate.runtime.bundle.compiled import TARGETS, Plan, backend, refused_dialect
from foveate.runtime.bundle.loading import Bundle, load
from foveate.runtime.cli import Parser
from foveate.runtime.compiling.job import Job, Progress

__all__ = ["MAX_CONTEXT", "OPTIONS", "compile_bundle", "main", "options_of"]

MAX_CONTEXT = 4096
"""Rows of the kv cache where TensorRT needs a fixed number, unless --max-context gives another one or the
model takes fewer."""

_WORK = ".compiling-"  # prefix of work folders beside the engines: ours, or left by runs that were killed
_READ_ONLY = (errno.EACCES, errno.EPERM, errno.EROFS)
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

_TENSORRT = {
    "max_context": None,
    "optimization_level": None,
    "workspace": None,
    "version_compatible": False,
    "cuda_graphs": False,
    "device_sampling": False,
}
OPTIONS: dict[str, dict[str, Any]] = {
    "onnxruntime": {"provider": "cpu", "accuracy_level": 4},
    "tensorrt": {**_TENSORRT, "hardware_compatible": False},
    "tensorrt-rtx": {**_TENSORRT, "capability": None},
}
"""Options of each target, with their defaults. ``max_context`` None means 4,096, or the model's limit if
lower."""


def compile_bundle(
    path: str | Path,
    target: str = "onnxruntime",
    provider: str | None = None,
    force: bool = False,
    *,
    accuracy_level: int | None = None,
    options: Mapping[str, Any] | None = None,
    dialect: str | None = None,
    self_test: bool = True,
    progress: Progress = lambda line: None,
) -> Path:
    """Compile every graph of the bundle at ``path`` for this machine. Return the folder with the engines.

    ``provider`` is ONNX Runtime's: "cpu" (also None) or "cuda". ``accuracy_level`` is that of int4 products
    in ONNX Runtime: 4 (also None) rounds activations to int8 and is several times as fast, 1 computes in
    float32. ``options`` are those of TensorRT, see ``OPTIONS``. ``dialect`` None stands for the best that the
    target takes. ``progress`` gets a line per graph. An engine that already fits is kept unless ``force`` is
    set. Raises UserError.
    """
    module = backend(target)
    given = {"provider": provider, "accuracy_level": accuracy_level, **(options or {})}
    chosen = options_of(target, given)
    module.machine(chosen)  # refuses wrong options before large files are hashed
    with _locked(Path(path), progress):
        bundle = load(path, progress=lambda name: progress(f"checking {name}"))
        return _compile(bundle, module, chosen, dialect, force, self_test, progress)


def _compile(
    bundle: Bundle,
    module: Any,
    options: dict[str, Any],
    dialect: str | None,
    force: bool,
    self_test: bool,
    progress: Progress,
) -> Path:
    """Compile a bundle whose lock the caller holds. See ``compile_bundle``."""
    if "max_context" in options:
        most = bundle.manifest.decoder["max_positions"]
        options["max_context"] = min(options["max_context"] or MAX_CONTEXT, most)
    machine = module.machine(options)
    dialect = _dialect(bundle, module, dialect)
    _require_precision(bundle, module, machine)
    folder = bundle.path / "engines" / module.key(machine)
    known = _existing(folder)
    if (
        known
        and not force
        and (known.options, known.dialect) == (options, dialect)
        and known.fault(bundle, progress=lambda name: progress(f"checking {name}")) is None
    ):
        progress(f"{folder} is up to date")
        return folder
    with _work_folder(bundle) as work:
        job = Job(bundle, module, machine, options, work, dialect, progress)
        job.compile(bundle.manifest.stages)
        job.prove() if self_test else job.write({"not_run": "it was not asked for"})
        work.chmod(0o755)  # mkdtemp makes folders that only their owner can read
        files.flush(work)
        files.put_folder(work, folder)
        if made := _existing(folder):
            made.remember()
    return folder


@contextlib.contextmanager
def _locked(path: Path, progress: Progress) -> Iterator[None]:
    """Hold the lock of the bundle at ``path``, after waiting for others that write there.

    No lock is held if there is no bundle at ``path``, or if it is read-only, since then nobody writes.
    """
    with contextlib.ExitStack() as stack:
        if (path / "bundle.json").is_file():
            lock = locks.held(*(locks.inside(path), "foveate compile"), refused="", remedy="", wait=progress)
            try:
                stack.enter_context(lock)
            except OSError as error:
                if error.errno not in _READ_ONLY:
                    raise _unwritable(path, error) from error
        yield


@contextlib.contextmanager
def _work_folder(bundle: Bundle) -> Iterator[Path]:
    """Yield an empty folder beside the engines. Remove it at the end, and what killed runs left behind.

    The caller holds the bundle's lock.
    """
    engines = bundle.path / "engines"
    try:
        engines.mkdir(exist_ok=True)
        for left in engines.glob(f"{_WORK}*"):
            shutil.rmtree(left, ignore_errors=True)
        work = Path(tempfile.mkdtemp(prefix=_WORK, dir=engines))
    except OSError as error:
        raise _unwritable(bundle.path, error) from error
    try:
        yield work
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise _unwritable(bundle.path, error) from error
    finally:
        shutil.rmtree(work, ignore_errors=True)  # holds the old engine if the two folders were exchanged
        shutil.rmtree(work.with_name(f"{work.name}.old"), ignore_errors=True)


def _unwritable(path: Path, error: OSError) -> UserError:
    reason = error.strerror
    if error.errno in _FULL:
        reason = f"{reason}, {shutil.disk_usage(path).free >> 20} MiB are free"
    return UserError(
        f"cannot write engines to {path} | {reason} "
        "| free some space, or copy the bundle to a folder that can be written"
    )


def options_of(target: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of ``target``, with defaults for those that are None.

    Raises UserError for an unknown target, an option that the target does not have, and a wrong value. The
    target's library need not be installed.
    """
    if target not in OPTIONS:
        raise unknown("target", target, OPTIONS)
    allowed = OPTIONS[target]
    for name, value in given.items():
        if value not in (None, False) and name not in allowed:
            flag = f"--{name.replace('_', '-')}"
            raise UserError(
                f"{flag} is not an option of {target} | it has {', '.join(sorted(allowed))} | leave it out",
                code=2,
            )
    chosen = {name: default if given.get(name) is None else given[name] for name, default in allowed.items()}
    ranges = {
        "accuracy_level": (0, 4),
        "optimization_level": (0, 5),
        "max_context": (1, None),
        "workspace": (1, None),
    }
    for name, (least, most) in ranges.items():
        value = chosen.get(name)
        if value is not None and not (least <= value and (most is None or value <= most)):
            words = f"{least} to {most}" if most is not None else f"{least} or more"
            raise UserError(
                f"wrong {name.replace('_', ' ')} | got {value}, expected {words} "
                "| leave it out for the default",
                code=2,
            )
    return chosen


def _dialect(bundle: Bundle, module: Any, asked: str | None) -> str:
    """Return the dialect ``asked`` for, or else the best that the target takes and the bundle has.

    Raises UserError if there is none.
    """
    accepted = module.DIALECTS
    for name in (asked,) if asked else accepted:
        if name in accepted and name in bundle.manifest.dialects:
            return name
    for name in (asked,) if asked else bundle.manifest.dialects:
        if reason := refused_dialect(module, name):
            raise UserError(f"{bundle.path} cannot be compiled in the dialect {name} | {reason}")
    if asked is not None and asked not in accepted:
        raise unknown("dialect of this target", asked, accepted)
    raise UserError(
        f"{bundle.path} lacks the dialect {asked or accepted[0]} "
        f"| it has {', '.join(bundle.manifest.dialects)}, this target takes {', '.join(accepted)} "
        f"| build the bundle with --dialects {asked or accepted[0]}"
    )


def _require_precision(bundle: Bundle, module: Any, machine: Mapping[str, Any]) -> None:
    kinds = set(bundle.manifest.precision.values())
    if hasattr(module, "refusal") and (reason := module.refusal(kinds, machine)):
        raise UserError(
            f"{bundle.path} cannot be compiled for this GPU | {reason} "
            "| build the bundle with another --precision, or name GPUs that have it with --capability",
            code=2,
        )


def _existing(folder: Path) -> Plan | None:
    try:
        return Plan(path=folder, **json.loads((folder / "engine.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):  # there is no engine, or one in another format
        return None


def _peak_memory() -> int | None:
    """Return the peak memory of the largest process that compiled a graph, in bytes, or None."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * unit


def _parser() -> Parser:
    parser = Parser(
        prog="foveate compile", description="Compile a bundle's graphs into engines for this machine."
    )
    parser.add_argument("bundle", metavar="BUNDLE", help="The folder of a bundle.")
    parser.add_argument(
        "--target",
        default="onnxruntime",
        help=f"Compile for this library: {', '.join(TARGETS)} (default: onnxruntime).",
    )
    parser.add_argument(
        "--dialect",
        help="Compile this form of the bundle's graphs; `foveate inspect` lists them "
        "(default: the best that the target takes).",
    )
    parser.add_argument(
        "--force",
        action="store_true",
        help="Compile even if the engine is up to date (default: an engine that is up to date is kept).",
    )
    parser.add_argument(
        "--no-self-test",
        action="store_true",
        help="Do not replay the reference answers that the build recorded (default: replay them).",
    )
    parser.add_argument(
        "--json", action="store_true", help="Print one JSON document (default: print text for people)."
    )
    ort = parser.add_argument_group("ONNX Runtime")
    ort.add_argument("--provider", help="Run on this execution provider: cpu or cuda (default: cpu).")
    ort.add_argument(
        "--accuracy-level",
        type=int,
        help="Compute the products of int4 weights with int8 activations (4, fast) or with float32 "
        "activations (1) (default: 4).",
    )
    trt = parser.add_argument_group("TensorRT and TensorRT for RTX")
    trt.add_argument(
        "--max-context",
        type=int,
        help="Give the kv cache room for this many rows, prompt and answer together "
        "(default: 4096, or the model's limit if that is lower).",
    )
    trt.add_argument(
        "--optimization-level",
        type=int,
        help="Let the builder search with this effort, from 0 to 5 (default: TensorRT's own level).",
    )
    trt.add_argument(
        "--workspace",
        type=int,
        metavar="MIB",
        help="Let the builder use at most this much device memory, in MiB (default: TensorRT's own limit).",
    )
    trt.add_argument(
        "--version-compatible",
        action="store_true",
        help="Make engines that later TensorRT versions can load as well. Not yet tried on a device "
        "(default: engines for this version).",
    )
    trt.add_argument(
        "--hardware-compatible",
        action="store_true",
        help="TensorRT only: make engines that run on any GPU from Ampere on. Not yet tried on a device "
        "(default: engines for this GPU).",
    )
    trt.add_argument(
        "--cuda-graphs",
        action="store_true",
        help="Replay decoding steps as CUDA graphs. Not yet tried on a device (default: off).",
    )
    trt.add_argument(
        "--device-sampling",
        action="store_true",
        help="Pick the likeliest tokens on the GPU, for greedy decoding and for a --top-k below 64. Not yet "
        "tried on a device (default: the CPU picks them).",
    )
    trt.add_argument(
        "--capability",
        metavar="SM86[,SM89]",
        help="TensorRT for RTX only: compile for these GPUs (default: one portable engine).",
    )
    return parser


def main(argv: list[str]) -> int:
    args = _parser().parse_args(argv)
    start = time.perf_counter()
    names = {name for options in OPTIONS.values() for name in options} - {"provider", "accuracy_level"}
    options = {name: getattr(args, name) for name in names}
    if args.capability:
        options["capability"] = [name.strip().upper() for name in args.capability.split(",")]
    folder = compile_bundle(
        args.bundle,
        args.target,
        args.provider,
        args.force,
        accuracy_level=args.accuracy_level,
        options=options,
        dialect=args.dialect,
        self_test=not args.no_self_test,
        progress=lambda line: print(line, file=sys.stderr, flush=True),
    )
    seconds, peak = round(time.perf_counter() - start, 3), _peak_memory()
    if args.json:
        print(json.dumps({"engine": str(folder), "seconds": seconds, "peak_bytes": peak}))
    else:
        if peak:
            print(f"peak memory {peak / 2**30:.2f} GiB", file=sys.stderr)
        print(f'{folder}\nnext: foveate run {args.bundle} "What is in the image?" --image FILE')
    return 0

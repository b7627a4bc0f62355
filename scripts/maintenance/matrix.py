"""``make matrix``: test every method on every family in every dialect.

The tests compare numbers, and compile for NVIDIA's GPUs.

It writes ``build/matrix.json``, the results by family, method, precision and dialect. A run that was
interrupted continues from there (``make clean`` removes them). From these results alone it writes
``docs/engines-matrix.md``. Numbers come from the self-test of ``foveate compile`` with ONNX Runtime, which
has the operators of every dialect. TensorRT for RTX compiles each distinct graph once. Models are tiny and
random, with four decoder layers.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from foveate.engines.errors import UserError
from foveate.engines.ort.backend import OnnxRuntime, onnxruntime
from foveate.engines.trt import backend as trt
from foveate.export import lowering, methods, models
from foveate.export.build import build
from foveate.export.calibration.calibrate import Calibration
from foveate.export.model_parts import ModelParts
from foveate.runtime.bundle.loading import Bundle, load
from foveate.runtime.compiling.job import Job

FAMILIES = models.families()
PRECISIONS = ("fp16", "fp32", "int8", "int4", "fp8")
CALIBRATED = ("int8", "fp8")
SAMPLES = 48
TARGETS = ["SM80", "SM86", "SM89", "SM120"]
FP8_TARGETS = ["SM89", "SM120"]
OLD_TARGETS = ["SM75"]  # no loops, no int4, no bfloat16
ACCURACY = 1  # int4 products in float32

HEAD = """# What compiles, and whether its numbers are right

Written by `make matrix` (`scripts/matrix.py`); do not edit. The models are tiny, random ones of each
family with four decoder layers.

* A number is the largest relative error over all graphs of a bundle: ONNX Runtime {ort} compared with
  torch in float32. In `int8` and `fp8` the reference rounds activations as the graph does, so the
  number shows faults and not the cost of rounding. That cost is in [precision.md](precision.md).
* **Bold** means that TensorRT for RTX {rtx} compiled every graph for {targets} (fp8: {fp8}). A plus
  means that it compiled them for {old} as well.
* `native` is for TensorRT from 10.15 on, `primitive` for older ones, and `ort` for ONNX Runtime.
* **No plan file has been run on a GPU.** Full TensorRT compiles only on a machine with a GPU, so it has
  compiled none of these."""

Results = dict[str, dict[str, Any]]
"""Results by ``family/method/precision``.

Each is {"refused": reason} or {dialect: {"error": ..., "compiled": ..., "old": ...}}.
"""


def cases() -> Iterator[tuple[str, str, str]]:
    """Yield the cases: family, method, precision.

    Methods change no weights of the decoder. So methods are tested in float16, and other precisions without a
    method.
    """
    for family in FAMILIES:
        yield from ((family, "none", precision) for precision in PRECISIONS)
        yield from ((family, method, "fp16") for method in methods.names() if method != "none")


def examine(
    parts: ModelParts, family: str, method: str, precision: str, compiled: dict[str, str]
) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "bundle"
        try:
            chosen = methods.load(method)
            calibration = Calibration("scenes", SAMPLES) if precision in CALIBRATED else None
            build(parts, chosen, out, precision=precision, calibration=calibration)
        except UserError as error:
            return {"refused": str(error).partition(" | ")[0]}
        bundle = load(out)
        targets = FP8_TARGETS if precision == "fp8" else TARGETS
        return {
            dialect: in_dialect(bundle, dialect, targets, compiled) for dialect in bundle.manifest.dialects
        }


def in_dialect(bundle: Bundle, dialect: str, targets: list[str], compiled: dict[str, str]) -> dict[str, Any]:
    found = {"error": numbers(bundle, dialect)}
    if dialect != "ort":
        found["compiled"] = takes(bundle, dialect, targets, compiled)
        found["old"] = takes(bundle, dialect, OLD_TARGETS, compiled)
    return found


def numbers(bundle: Bundle, dialect: str) -> float | str:
    """Return the largest relative error of any answer, or what is wrong."""
    options = {"provider": "cpu", "accuracy_level": ACCURACY}
    ort = OnnxRuntime()
    with tempfile.TemporaryDirectory() as folder:
        job = Job(bundle, ort, ort.machine(options), options, Path(folder), dialect, lambda line: None)
        try:
            job.compile(bundle.manifest.stages)
            job.prove()
        except UserError as error:
            return str(error)
        tested = json.loads((Path(folder) / "engine.json").read_text(encoding="utf-8"))["self_test"]
    return max(finding["error"] for finding in tested["findings"])


def takes(bundle: Bundle, dialect: str, targets: list[str], compiled: dict[str, str]) -> str:
    """Return "yes", or which graph TensorRT for RTX refuses for these GPUs, and why."""
    backend = trt.TensorRT("tensorrt-rtx")
    for name in bundle.manifest.stages:
        for spec, file in bundle.manifest.forms(name, dialect):
            source = bundle.file(file)
            key = hashlib.sha256(source.read_bytes()).hexdigest() + "+".join(targets)
            if key not in compiled:
                with tempfile.TemporaryDirectory() as folder:
                    try:
                        backend.compile_graph(
                            source, Path(folder), spec, {"max_context": 256, "capability": targets}
                        )
                        compiled[key] = "yes"
                    except UserError as error:
                        compiled[key] = f"{name}: {str(error).split(' | ')[1][:160]}"
            if compiled[key] != "yes":
                return compiled[key]
    return "yes"


def page(results: Results) -> str:
    """Return the page as Markdown. Cases that have not been tried yet are marked."""
    versions = {"ort": onnxruntime.__version__, "rtx": trt.TensorRT("tensorrt-rtx").version}
    lists = {"targets": TARGETS, "old": OLD_TARGETS, "fp8": FP8_TARGETS}
    targets = {name: ", ".join(names) for name, names in lists.items()}
    lines = [HEAD.format(**versions, **targets)]
    for title, wanted in (("Methods, in float16", "fp16"), ("Precisions, without a method", None)):
        lines += ["", f"## {title}", ""]
        lines += table(results, wanted)
    refused = {key: found["refused"] for key, found in results.items() if "refused" in found}
    lines += ["", "## Refused when the bundle is built", ""]
    lines += [f"- {key.replace('/', ', ')}: {why}" for key, why in sorted(refused.items())] or ["nothing"]
    wrong = sorted(faults(results))
    return "\n".join([*lines, "", "## What went wrong", "", *(wrong or ["nothing"]), ""])


def table(results: Results, precision: str | None) -> Iterator[str]:
    columns = [(family, dialect) for family in FAMILIES for dialect in lowering.names()]
    first = "method" if precision else "precision"
    yield f"| {first} | {' | '.join(f'{family} {dialect}' for family, dialect in columns)} |"
    yield f"|---|{'---|' * len(columns)}"
    rows = methods.names() if precision else PRECISIONS
    for row in rows:
        key = "{}/" + (f"{row}/{precision}" if precision else f"none/{row}")
        yield f"| `{row}` | {' | '.join(cell(results.get(key.format(f)), d) for f, d in columns)} |"


def cell(found: dict[str, Any] | None, dialect: str) -> str:
    if found is None:
        return "not tried"
    if "refused" in found:
        return "refused"
    if dialect not in found:
        return "none"
    entry = found[dialect]
    text = f"{entry['error']:.0e}" if isinstance(entry["error"], float) else "WRONG"
    if entry.get("compiled", "yes") != "yes":
        return f"{text}, not compiled"
    return text if dialect == "ort" else f"**{text}**{'+' if entry['old'] == 'yes' else ''}"


def faults(results: Results) -> Iterator[str]:
    for key, found in results.items():
        for dialect, entry in found.items():
            if dialect == "refused":
                continue
            if isinstance(entry["error"], str):
                yield f"- {key}, {dialect}: {entry['error']}"
            if entry.get("compiled", "yes") != "yes":
                yield f"- {key}, {dialect}, not compiled: {entry['compiled']}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--results",
        type=Path,
        default=Path("build/matrix.json"),
        help="File of the results (default: build/matrix.json).",
    )
    parser.add_argument(
        "--page",
        type=Path,
        default=Path("docs/engines-matrix.md"),
        help="Page to write (default: docs/engines-matrix.md).",
    )
    parser.add_argument(
        "--families", default=",".join(FAMILIES), help="Families to test, separated by commas (default: all)."
    )
    parser.add_argument(
        "--methods",
        default=",".join(methods.names()),
        help="Methods to test, separated by commas (default: all).",
    )
    parser.add_argument(
        "--jobs", type=int, default=os.cpu_count(), help="Number of processes (default: one per core)."
    )
    parser.add_argument(
        "--page-only",
        action="store_true",
        help="Only write the page from the existing results (default: test first).",
    )
    args = parser.parse_args()
    args.results.parent.mkdir(parents=True, exist_ok=True)
    results: Results = json.loads(args.results.read_text()) if args.results.exists() else {}
    families, chosen = args.families.split(","), args.methods.split(",")
    wanted = [
        case
        for case in cases()
        if case[0] in families and case[1] in chosen and "/".join(case) not in results and not args.page_only
    ]
    with ProcessPoolExecutor(args.jobs, multiprocessing.get_context("spawn")) as pool:
        waiting = {pool.submit(timed, case): "/".join(case) for case in wanted}
        for done in as_completed(waiting):
            if (
                error := done.exception()
            ):  # a fault of ours: the others go on, and this one is tried again next time
                print(f"{waiting[done]:<36}FAILED  {error!r}", flush=True)
                continue
            key, results[key], seconds = done.result()
            args.results.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
            print(f"{key:<36}{seconds:7.1f} s  {line(results[key])}", flush=True)
    args.page.write_text(page(results), encoding="utf-8")
    sys.exit(any(done.exception() for done in waiting))


def line(found: dict[str, Any]) -> str:
    return ", ".join(f"{dialect} {cell(found, dialect)}" for dialect in sorted(found))


# ModelParts by family, loaded once per process, so that what methods share is traced once.
PARTS: dict[str, ModelParts] = {}
# Outcome of compilation by graph, also per process.
COMPILED: dict[str, str] = {}


def timed(case: tuple[str, str, str]) -> tuple[str, dict[str, Any], float]:
    """Return the key of a case, its result, and the seconds that it took."""
    start, (family, method, precision) = time.perf_counter(), case
    if family not in PARTS:
        PARTS[family] = models.family(family).tiny(layers=4)
    found = examine(PARTS[family], family, method, precision, COMPILED)
    return "/".join(case), found, time.perf_counter() - start

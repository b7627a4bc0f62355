"""Measure the accuracy of some methods on held-out scenes, in every precision that ONNX Runtime runs.

All answer the same questions, so each precision is compared with fp32 question by question. A precision is a
value of ``--precision``, followed by ``+head-SCHEME``, ``+vision-SCHEME`` and ``+prefill-SCHEME`` for parts
with their own scheme. Answers are stored in ``--work`` as by ``accuracy.py``. Prints a table; the last line
is one JSON document.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from evaluation.arguments import add_work, add_workers
from evaluation.bundles import ready_bundle
from evaluation.compare import answer_all
from evaluation.scenes import UNPRUNED, Plan
from foveate.calib.scenes.questions import HELD_OUT, KINDS
from foveate.engines.ort.backend import onnxruntime
from foveate.runtime.bundle import loading as bundle

PRECISIONS = (
    *("fp32", "int8", "int4", "int4+prefill-int8"),
    *("int4+head-int4", "int4+vision-int8", "int4+vision-int4", "int8+vision-int8+head-int8"),
)
METHODS = (UNPRUNED, "sppruner", "feather")


class Cell(NamedTuple):
    """``accuracy`` in per cent, ``change`` against fp32 in points, and the standard error of the change."""

    accuracy: float
    change: float
    error: float


def main(argv: list[str]) -> int:
    args = _parser().parse_args(argv)
    plan = Plan(args.model, args.work, (args.budget,), args.questions, KINDS, HELD_OUT)
    variants = [f"{method}@{precision}" for precision in args.precisions for method in args.methods]
    answers, failures = answer_all(plan, variants, args.workers)
    if failures:
        return 1
    cells = {
        name: _cell(records, answers[f"{name.partition('@')[0]}@fp32"]) for name, records in answers.items()
    }
    sizes = {
        precision: _mebibytes(ready_bundle(plan.model, f"{args.methods[0]}@{precision}", plan.folder))
        for precision in args.precisions
    }
    lines = table(cells, sizes, args.methods, args.precisions)
    print("\n".join(lines))
    if args.docs:
        (args.docs / "precision.md").write_text(_page(args, argv, lines), encoding="utf-8")
    document = {name: cell._asdict() for name, cell in cells.items()}
    print(
        json.dumps(
            {"questions": args.questions, "budget": args.budget, "mebibytes": sizes, "cells": document}
        )
    )
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--model",
        default="scripts/shapes",
        help="Folder or name of the checkpoint (default: scripts/shapes).",
    )
    parser.add_argument(
        "--methods", nargs="+", default=list(METHODS), help=f"Methods (default: {' '.join(METHODS)})."
    )
    parser.add_argument(
        "--precisions", nargs="+", default=list(PRECISIONS), help="Precisions, including fp32 (default: all)."
    )
    parser.add_argument(
        "--budget", default="11.1%", help="Budget of the methods that prune, as in --keep (default: 11.1%%)."
    )
    parser.add_argument("--questions", type=int, default=700, help="Number of questions (default: 700).")
    parser.add_argument(
        "--docs", type=Path, metavar="DIR", help="Write precision.md to this folder (default: do not)."
    )
    add_work(parser)
    add_workers(parser)
    return parser


def _cell(records: Sequence[Mapping[str, Any]], exact: Sequence[Mapping[str, Any]]) -> Cell:
    right, before = (np.array([record["right"] for record in each], float) for each in (records, exact))
    apart = right - before
    return Cell(100 * right.mean(), 100 * apart.mean(), 100 * apart.std() / len(apart) ** 0.5)


def _mebibytes(path: Path) -> float:
    """Return the size in MiB of the bundle's weights and the embedding table."""
    files = bundle.load(path).manifest.files
    return sum(entry.size for name, entry in files.items() if name.startswith(("weights/", "embed"))) / 2**20


def table(
    cells: Mapping[str, Cell], sizes: Mapping[str, float], methods: Sequence[str], precisions: Sequence[str]
) -> list[str]:
    def show(cell: Cell, precision: str) -> str:
        if precision == "fp32":
            return f"{cell.accuracy:.1f} %"
        return f"{cell.accuracy:.1f} % ({cell.change:+.1f} ± {cell.error:.1f})"

    lines = [f"| precision | {' | '.join(methods)} | weights, MiB |", "|---" * (len(methods) + 2) + "|"]
    for precision in precisions:
        shown = (show(cells[f"{method}@{precision}"], precision) for method in methods)
        lines.append(f"| `{precision}` | {' | '.join(shown)} | {sizes[precision]:.1f} |")
    return lines


def _page(args: argparse.Namespace, argv: Sequence[str], lines: Sequence[str]) -> str:
    return f"""# Precision and pruning

The small checkpoint `{args.model}` answered {args.questions} questions about synthetic scenes that it
was not trained on, once in every precision. The methods that prune kept {args.budget} of the visual
tokens. The table shows right answers. In brackets is the change from `fp32` in points, compared
question by question, with its standard error. Everything ran in ONNX Runtime {onnxruntime.__version__}
on the CPU with the dialect `ort`; nothing ran on a GPU.

`int4` weights are rounded to nearest, without calibration, and their products round activations to int8
(accuracy level 4). `int8` finds the range of each row of an activation at run time. The language model's
head and the vision encoder are in float32 unless the precision names them.

{chr(10).join(lines)}

Written by `{" ".join(["python", "scripts/accuracy_precision.py", *argv])}`.
"""

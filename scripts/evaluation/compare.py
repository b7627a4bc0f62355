"""Compare methods on held-out scenes.

Two processes answer, the main process shows progress and prints tables.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import traceback
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from evaluation import report
from evaluation.arguments import add_questions, add_work, add_workers
from evaluation.bundles import at_budgets, options_of
from evaluation.scenes import UNPRUNED, Plan, answer, clock, held_out, open_log
from foveate.calib.scenes.questions import KINDS
from foveate.engines.errors import UserError
from foveate.export import methods
from foveate.runtime.bundle import loading as bundle

SCREEN = Console(stderr=True)


def main(argv: list[str]) -> int:
    args = _parser().parse_args(argv)
    plan = Plan(
        args.model, args.work, tuple(args.budgets), args.questions, tuple(args.kinds), args.first_seed
    )
    names, left_out = named(plan, [UNPRUNED, *(args.methods or methods.names())])
    for line in left_out:
        SCREEN.print(line, markup=False, highlight=False)
    answers, failures = answer_all(plan, list(names), args.workers)
    if UNPRUNED in failures:
        return 1
    times = clock_all(plan, list(answers), args.clock) if args.clock else {}
    rows = [
        row
        for variant, records in answers.items()
        for row in report.rows_of(names[variant], records, times.get(variant, {}))
    ]
    print(report.by_budget(rows, total_of(rows)))
    document = {"model": args.model, "first_seed": args.first_seed, "layers": layers_of(plan)}
    document |= {"left_out": left_out, "failed": list(failures), "rows": rows}
    if args.docs:
        from evaluation.page import write

        write(args.docs, document, kinds=plan.kinds, command=["scripts/accuracy.py", *argv])
    print(json.dumps(document, separators=(",", ":")))
    return 1 if failures else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        epilog="A benchmark's name as first argument runs that benchmark instead: see NAME --help.",
    )
    add_questions(parser)
    parser.add_argument(
        "--methods",
        nargs="+",
        metavar="METHOD[:K=V,...]",
        help="Variants to compare (default: all methods, as published).",
    )
    parser.add_argument(
        "--kinds", nargs="+", default=list(KINDS), choices=KINDS, help="Kinds of questions (default: all)."
    )
    parser.add_argument(
        "--clock",
        type=int,
        default=0,
        metavar="ROUNDS",
        help="Also measure the time to the first token, in this many rounds (default: 0, do not).",
    )
    parser.add_argument(
        "--docs",
        type=Path,
        metavar="DIR",
        help="Write accuracy.md and its plots to this folder (default: do not).",
    )
    add_work(parser)
    add_workers(parser)
    return parser


def named(plan: Plan, variants: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Return the variants to build with their names in tables, and which budgets are left out, and why.

    Variants that differ only in a fixed budget have the same name.
    """
    names: dict[str, str] = {}
    left_out: list[str] = []
    for variant in variants:
        try:
            found, missing = at_budgets(plan.model, variant, plan.budgets)
        except UserError:  # reported when it is built, so that one failure does not stop the others
            found, missing = [variant], []
        names |= dict.fromkeys(found, variant)
        left_out += missing
    return names, left_out


def answer_all(
    plan: Plan, variants: list[str], workers: int
) -> tuple[dict[str, list[dict[str, Any]]], dict[str, str]]:
    """Return the records by variant in the given order, and the errors of the variants that failed.

    One process answers for one variant at a time.
    """
    fixed = [variant for variant in variants if variant == UNPRUNED or "keep" in options_of(variant)[1]]
    cases = len(fixed) + (len(variants) - len(fixed)) * len(plan.budgets)
    asked = sum(len(scene.questions) for scene in held_out(plan.questions, plan.first_seed, plan.kinds))
    os.environ["OMP_NUM_THREADS"] = "1"  # read by what the processes import
    context = multiprocessing.get_context("spawn")
    counts = context.SimpleQueue()  # unbuffered, so a finished variant's counts have arrived
    answers, failures = {}, {}
    with _bar() as bar, ProcessPoolExecutor(workers, context, _start, (counts,)) as pool:
        task = bar.add_task("questions", total=cases * asked)
        running = {pool.submit(_answer, plan, variant): variant for variant in variants}
        while running:
            done, _ = wait(running, timeout=0.3, return_when=FIRST_COMPLETED)
            while not counts.empty():
                bar.advance(task, counts.get())
            for future in done:
                variant = running.pop(future)
                if (error := future.exception()) is None:
                    answers[variant] = future.result()
                else:  # the others continue; it is reported below and by the exit status
                    failures[variant] = "".join(traceback.format_exception(error))
    for variant, trace in failures.items():
        SCREEN.print(f"{variant} failed:\n{trace}", markup=False, highlight=False)
    return {variant: answers[variant] for variant in variants if variant in answers}, failures


_counts: Any = None


def _start(counts: Any) -> None:
    global _counts
    _counts = counts


def _answer(plan: Plan, variant: str) -> list[dict[str, Any]]:
    return answer(plan, variant, _counts.put)


def clock_all(plan: Plan, variants: list[str], rounds: int) -> dict[str, dict[int, dict[str, Any]]]:
    """Return the times by variant and budget, measured one after the other with nothing else running."""
    with _bar() as bar:
        task = bar.add_task("clock", total=len(variants))
        times = {}
        for variant in variants:
            times[variant] = clock(plan, variant, rounds)
            bar.advance(task)
    return times


def _bar() -> Progress:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=SCREEN)


def layers_of(plan: Plan) -> int:
    return bundle.load(open_log(plan, UNPRUNED)[1]).manifest.decoder.num_layers


def total_of(rows: list[dict[str, Any]]) -> int:
    """Return the number of visual tokens of an unpruned image."""
    return next(row["keep"] for row in rows if row["method"] == UNPRUNED)

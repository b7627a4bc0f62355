"""The comparison of methods on held-out scenes: two processes answer, one tells how far they are, tables come out."""

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

import accuracy_report as report
from accuracy_bundles import at_budgets, options_of
from accuracy_scenes import UNPRUNED, Plan, answer, clock, held_out, open_log
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from foveate.calib.scenes.questions import HELD_OUT, KINDS
from foveate.engines.errors import UserError
from foveate.export import methods
from foveate.runtime.bundle import loading as bundle

WORKERS = 2
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
        from accuracy_docs import write

        write(args.docs, document, kinds=plan.kinds, command=["scripts/accuracy.py", *argv])
    print(json.dumps(document, separators=(",", ":")))
    return 1 if failures else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        epilog="The name of a benchmark as first argument: see NAME --help.",
    )
    parser.add_argument("--model", default="scripts/shapes", help="checkpoint directory or name")
    parser.add_argument("--methods", nargs="+", metavar="METHOD[:K=V,...]", help="default: all, as published")
    parser.add_argument(
        "--budgets", nargs="+", default=["33.3%", "22.2%", "11.1%", "5.6%"], help="as --keep takes them"
    )
    parser.add_argument("--questions", type=int, default=2000)
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=KINDS)
    parser.add_argument(
        "--first-seed", type=int, default=HELD_OUT, help="tune options on other seeds than those reported"
    )
    parser.add_argument(
        "--clock", type=int, default=0, metavar="ROUNDS", help="also measure the time to the first token"
    )
    parser.add_argument("--docs", type=Path, metavar="DIR", help="write accuracy.md and its plots there")
    parser.add_argument("--work", type=Path, default=Path("bundles/accuracy"))
    parser.add_argument("--workers", type=int, default=WORKERS, help="processes, with one thread each")
    return parser


def named(plan: Plan, variants: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """The variants to build, and what each is called in tables: those that differ in a fixed budget alone, the same.
    Also which budgets are left out, and why."""
    names: dict[str, str] = {}
    left_out: list[str] = []
    for variant in variants:
        try:
            found, missing = at_budgets(plan.model, variant, plan.budgets)
        except UserError:  # told when it is built: one that fails does not stop the others
            found, missing = [variant], []
        names |= dict.fromkeys(found, variant)
        left_out += missing
    return names, left_out


def answer_all(
    plan: Plan, variants: list[str], workers: int
) -> tuple[dict[str, list[dict[str, Any]]], dict[str, str]]:
    """Records by variant in the order asked for, and what went wrong with the others. A variant is one process's work."""
    fixed = [variant for variant in variants if variant == UNPRUNED or "keep" in options_of(variant)[1]]
    cases = len(fixed) + (len(variants) - len(fixed)) * len(plan.budgets)
    asked = sum(len(scene.questions) for scene in held_out(plan.questions, plan.first_seed, plan.kinds))
    os.environ["OMP_NUM_THREADS"] = "1"  # what the processes import reads it
    context = multiprocessing.get_context("spawn")
    counts = context.SimpleQueue()  # written at once: what a finished variant told is there
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
                else:  # the others go on; it is told below, and by the exit status
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
    """Times by variant and budget, one after the other and nothing beside them."""
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
    return bundle.load(open_log(plan, UNPRUNED)[1]).manifest.decoder["num_layers"]


def total_of(rows: list[dict[str, Any]]) -> int:
    """Visual tokens of a whole picture."""
    return next(row["keep"] for row in rows if row["method"] == UNPRUNED)

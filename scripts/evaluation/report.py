"""Compute numbers and tables from answers: shares of right answers with intervals, tokens, FLOPs and time.

The input is the records and times of every case. The output is rows of plain numbers, and Markdown.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

__all__ = ["by_budget", "by_kind", "costs_table", "rows_of", "wilson"]

Row = dict[str, Any]


def wilson(right: int, total: int, z: float = 1.96) -> tuple[float, float]:
    """Return the 95 % confidence interval of a share (Wilson 1927)."""
    if not total:
        return 0.0, 1.0
    share, square = right / total, z * z / total
    middle = (share + square / 2) / (1 + square)
    half = z / (1 + square) * math.sqrt(share * (1 - share) / total + square / (4 * total))
    return middle - half, middle + half


def rows_of(
    variant: str, records: Iterable[Mapping[str, Any]], times: Mapping[int, Mapping[str, Any]]
) -> list[Row]:
    """Return a row per budget, the largest first.

    ``tokens`` is the number of visual tokens, averaged over layers. ``rows`` is the mean number that enters
    each part of the decoder. ``prefill`` is what ``evaluation.scenes.clock`` measured.
    """
    cases: dict[int, list[Mapping[str, Any]]] = {}
    for record in records:
        cases.setdefault(record["keep"], []).append(record)
    return [_row(variant, keep, cases[keep], times.get(keep)) for keep in sorted(cases, reverse=True)]


def _row(variant: str, keep: int, records: list[Mapping[str, Any]], times: Mapping[str, Any] | None) -> Row:
    kinds: dict[str, list[bool]] = {}
    for record in records:
        kinds.setdefault(record["kind"], []).append(record["right"])
    right = sum(record["right"] for record in records)
    parts = [_mean(part) for part in zip(*(record["rows"] for record in records), strict=True)]
    return {
        "method": variant,
        "keep": keep,
        "asked": len(records),
        "accuracy": right / len(records),
        "interval": wilson(right, len(records)),
        "kinds": {kind: _mean(answers) for kind, answers in kinds.items()},
        "counts": {kind: len(answers) for kind, answers in kinds.items()},
        "rows": parts,
        "tokens": _mean(record["tokens"] for record in records),
        "flops": _mean(record["flops"] for record in records),
        "prefill": {"seconds": times["seconds"], "share": times["share"]} if times else None,
    }


def _mean(values: Iterable[float]) -> float:
    values = list(values)
    return sum(values) / len(values)


def by_budget(rows: Sequence[Row], total: int) -> str:
    """Return a table of methods by budgets: per cent right with the 95 % interval.

    The best method by its mean over budgets comes first.
    """
    whole, pruned, keeps = _parted(rows)
    table = _head(["method", *(f"{keep} ({100 * keep / total:.1f} %)" for keep in keeps)])
    for row in whole:
        table.append(_line([f"{row['method']} ({row['keep']})", _interval(row), *[""] * (len(keeps) - 1)]))
    for name, of_method in _ranked(pruned):
        table.append(
            _line([name, *(_interval(of_method[keep]) if keep in of_method else "" for keep in keeps)])
        )
    return "\n".join(table)


def by_kind(rows: Sequence[Row], keep: int, kinds: Sequence[str]) -> str:
    """Return a table of methods by kinds of question, at one budget: per cent right."""
    whole, pruned, _ = _parted(rows)
    at = sorted((row for row in pruned if row["keep"] == keep), key=lambda row: -row["accuracy"])
    counts = (at or whole)[0]["counts"]
    kinds = [kind for kind in kinds if kind in counts]  # few questions may miss one
    table = _head(["method", "all", *(f"{kind} ({counts[kind]})" for kind in kinds)])
    for row in (*whole, *at):
        shares = (f"{100 * row['kinds'][kind]:.1f}" for kind in kinds)
        table.append(_line([row["method"], f"{100 * row['accuracy']:.1f}", *shares]))
    return "\n".join(table)


def costs_table(rows: Sequence[Row]) -> str:
    """Return a table of the cost of each case in the language model, the cheapest first within a budget."""
    whole, pruned, keeps = _parted(rows)
    table = _head(
        [
            "tokens asked for",
            "method",
            "tokens in each part",
            "mean over layers",
            "GFLOPs",
            "share",
            "prefill ms",
            "share",
        ]
    )
    base = whole[0]["flops"] if whole else None
    order = [*whole, *(row for keep in keeps for row in _cheapest(pruned, keep))]
    for row in order:
        parts = ", ".join(f"{count:.4g}" for count in row["rows"])
        flops = [f"{row['flops'] / 1e9:.3f}", f"{100 * row['flops'] / base:.1f} %" if base else ""]
        time = row["prefill"]
        clock = [f"{1e3 * time['seconds']:.1f}", f"{100 * time['share']:.0f} %"] if time else ["", ""]
        table.append(_line([str(row["keep"]), row["method"], parts, f"{row['tokens']:.1f}", *flops, *clock]))
    return "\n".join(table)


def _cheapest(rows: Sequence[Row], keep: int) -> list[Row]:
    return sorted((row for row in rows if row["keep"] == keep), key=lambda row: (row["flops"], row["method"]))


def _parted(rows: Sequence[Row]) -> tuple[list[Row], list[Row], list[int]]:
    whole = [row for row in rows if row["method"] == "none"]
    pruned = [row for row in rows if row["method"] != "none"]
    return whole, pruned, sorted({row["keep"] for row in pruned}, reverse=True)


def _ranked(rows: Sequence[Row]) -> list[tuple[str, dict[int, Row]]]:
    methods: dict[str, dict[int, Row]] = {}
    for row in rows:
        methods.setdefault(row["method"], {})[row["keep"]] = row
    return sorted(methods.items(), key=lambda item: -_mean(row["accuracy"] for row in item[1].values()))


def _interval(row: Row) -> str:
    low, high = row["interval"]
    return f"{100 * row['accuracy']:.1f} ({100 * low:.1f}..{100 * high:.1f})"


def _head(names: Sequence[str]) -> list[str]:
    return [_line(names), f"|{'---|' * len(names)}"]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"

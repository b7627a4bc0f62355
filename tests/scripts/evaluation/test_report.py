"""Rows and tables of accuracy, and the intervals in them."""

from __future__ import annotations

import math

from evaluation.report import by_budget, by_kind, costs_table, rows_of, wilson


def test_intervals_are_wilson_s():
    """Compare with the roots of the quadratic that define it, and with a published example."""
    for right, total in ((0, 10), (10, 10), (933, 1000), (1, 3)):
        z = 1.96
        for bound in wilson(right, total):
            share = right / total
            assert math.isclose((share - bound) ** 2, z * z * bound * (1 - bound) / total, abs_tol=1e-12)
    assert [round(b, 4) for b in wilson(81, 263)] == [0.2553, 0.3662]  # Newcombe 1998, table I
    assert wilson(0, 0) == (0.0, 1.0)


def record(keep: int, kind: str, right: bool, rows: list[int], flops: int) -> dict:
    mean = sum(rows) / len(rows)
    return {
        "seed": 0,
        "index": 0,
        "keep": keep,
        "kind": kind,
        "right": right,
        "rows": rows,
        "tokens": mean,
        "flops": flops,
    }


def test_rows_are_means_of_their_records():
    records = [
        record(32, "count", True, [32, 8], 100),
        record(32, "count", False, [30, 8], 200),
        record(32, "read", True, [34, 8], 300),
        record(64, "read", True, [64, 16], 400),
    ]
    large, small = rows_of("fastv", records, {32: {"seconds": 0.5, "share": 0.25}})
    assert (large["keep"], small["keep"]) == (64, 32)
    assert small["accuracy"] == 2 / 3 and small["kinds"] == {"count": 0.5, "read": 1.0}
    assert small["rows"] == [32, 8] and small["tokens"] == 20 and small["flops"] == 200
    assert small["prefill"] == {"seconds": 0.5, "share": 0.25} and large["prefill"] is None
    assert small["interval"][0] < 2 / 3 < small["interval"][1]


def test_tables_put_the_best_first_and_miss_no_case():
    rows = rows_of("none", [record(576, "count", True, [576], 1000)], {})
    rows += rows_of("poor", [record(keep, "count", False, [keep], keep) for keep in (64, 32)], {})
    rows += rows_of("good", [record(keep, "count", True, [keep], 2 * keep) for keep in (64, 32)], {})
    lines = by_budget(rows, 576).splitlines()
    assert lines[0] == "| method | 64 (11.1 %) | 32 (5.6 %) |"
    assert [line.split("|")[1].strip() for line in lines[2:]] == ["none (576)", "good", "poor"]
    assert lines[3].count("100.0 (20.7..100.0)") == 2
    assert by_kind(rows, 32, ["count"]).splitlines()[2:] == [
        "| none | 100.0 | 100.0 |",
        "| good | 100.0 | 100.0 |",
        "| poor | 0.0 | 0.0 |",
    ]
    costs = [line.split("|") for line in costs_table(rows).splitlines()[2:]]
    assert [(c[1].strip(), c[2].strip(), c[6].strip()) for c in costs] == [
        ("576", "none", "100.0 %"),
        ("64", "poor", "6.4 %"),
        ("64", "good", "12.8 %"),
        ("32", "poor", "3.2 %"),
        ("32", "good", "6.4 %"),
    ]

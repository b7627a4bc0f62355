"""Accuracy runs ask the same questions of every method, nothing twice, nothing of another version."""

from __future__ import annotations

import json
import math
import sys
from itertools import pairwise
from pathlib import Path

import accuracy
import pytest

from evaluation import scenes, store
from evaluation.bundles import _builders, at_budgets
from evaluation.report import by_budget, by_kind, costs_table, rows_of, wilson
from evaluation.scenes import held_out
from evaluation.store import Log
from foveate.calib.scenes.questions import HELD_OUT, KINDS

SCRIPTS = Path(__file__).parents[3] / "scripts"


def test_questions_are_numbered_within_their_scene_and_chosen_by_kind():
    every = held_out(20, HELD_OUT, KINDS)
    assert [asked.seed for asked in every] == [HELD_OUT, HELD_OUT + 1, HELD_OUT + 2]
    assert [len(asked.questions) for asked in every] == [7, 7, 6]
    assert held_out(20, HELD_OUT, KINDS) is every  # drawn once
    some = held_out(9, HELD_OUT, ("count", "read"))
    assert sum(len(asked.questions) for asked in some) == 9
    whole = {(a.seed, i): q for a in held_out(200, HELD_OUT, KINDS) for i, q in a.questions}
    for asked in some:
        for index, question in asked.questions:
            assert question.kind in ("count", "read") and whole[asked.seed, index] == question


def test_a_log_drops_what_a_crash_cut_short_and_goes_on(tmp_path):
    file = tmp_path / "deep" / "log.jsonl"
    Log(file, ("a", "b")).add([{"a": 1, "b": 2, "c": "x"}, {"a": 1, "b": 3, "c": "y"}])
    with file.open("a") as handle:
        handle.write('{"a": 1, "b": 4, "c": "cut sh')
    log = Log(file, ("a", "b"))
    assert len(log) == 2 and log.get(1, 3)["c"] == "y" and log.get(1, 4) is None
    log.add([{"a": 1, "b": 4, "c": "z"}])
    assert [json.loads(line)["c"] for line in file.read_text().splitlines()] == ["x", "y", "z"]


def test_code_is_the_same_without_its_comments_and_another_when_something_it_imports_changes(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(store, "ROOT", tmp_path)
    (tmp_path / "runtime").mkdir()
    top, below = tmp_path / "runtime/top.py", tmp_path / "runtime/below.py"

    def version(first: str, second: str) -> str:
        top.write_text(first)
        below.write_text(second)
        return store.code_version("foveate.runtime.top")

    plain = version("from foveate.runtime import below\nx = below.y\n", "y = 1\n")
    assert (
        version('"""Text."""\nfrom foveate.runtime import below  # why\n\nx = below.y\n', "y = 1  # one\n")
        == plain
    )
    assert version("from foveate.runtime import below\nx = below.y\n", "y = 2\n") != plain
    assert version("from foveate.runtime import below\nx = below.y + 1\n", "y = 1\n") != plain


def test_the_code_of_a_bundle_is_its_own_method_s_and_not_another_s():
    mine = _builders("sppruner")
    assert "foveate.export.methods.sppruner" in mine and "foveate.export.pruning.method" in mine
    assert "foveate.export.build" in mine and "foveate.export.methods.uniform" not in mine
    assert {"foveate.export.methods.vscan", "foveate.export.methods.fastv"} <= set(_builders("vscan+fastv"))


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


def test_labels_move_apart_and_stay_in_order():
    pytest.importorskip("matplotlib")
    from evaluation.plots import _apart

    moved = _apart([1.0, 1.0, 1.1, 9.0], 2.0)
    assert all(b - a >= 2 - 1e-6 for a, b in pairwise(moved))
    assert abs(sum(moved[:3]) / 3 - 3.1 / 3) < 1e-6 and moved[3] == 9.0


@pytest.fixture(scope="module")
def tiny(tmp_path_factory, save_checkpoint):
    """Arguments: a random checkpoint and a folder for its bundles, which the tests below share."""
    path, work = tmp_path_factory.mktemp("tiny"), tmp_path_factory.mktemp("work")
    save_checkpoint(path)
    return ["--model", str(path), "--work", str(work), "--budgets", "50%", "3"]


def test_from_a_checkpoint_to_tables(tiny, tmp_path, capsys):
    """Random weights answer at random, so who is asked what, and the files, are tested. One method fails."""
    pytest.importorskip("matplotlib")
    docs = tmp_path / "docs"
    which = [
        "--methods",
        "uniform",
        "sppruner:rho=7",
        "--questions",
        "9",
        "--clock",
        "1",
        "--docs",
        str(docs),
    ]
    assert accuracy.main([*tiny, *which]) == 1
    out, err = capsys.readouterr()
    assert "sppruner:rho=7 failed" in err and "bad value for rho" in err
    rows = json.loads(out.splitlines()[-1])["rows"]
    cases = [(row["method"], row["keep"], row["asked"]) for row in rows]
    assert cases == [("none", 16, 9), ("uniform", 8, 9), ("uniform", 3, 9)]
    assert [row["rows"] for row in rows] == [[16], [8], [3]]
    assert rows[0]["flops"] > rows[1]["flops"] > rows[2]["flops"] > 0
    assert all(row["prefill"]["seconds"] > 0 for row in rows)
    page = (docs / "accuracy.md").read_text()
    assert "| uniform |" in page and "accuracy-time.png" in page
    assert {file.name for file in docs.glob("*.png")} == {
        f"accuracy-{axis}.png" for axis in ("tokens", "flops", "time")
    }


def test_nothing_is_asked_twice_and_nothing_taken_from_another_version(tiny, monkeypatch):
    plan = scenes.Plan(tiny[1], Path(tiny[3]), ("50%", "3"), 9, tuple(KINDS), HELD_OUT)
    first = scenes.answer(plan, "uniform")
    asked, generate = [], scenes.Pipeline.generate

    def counted(*args, **options):
        asked.append(options["keep"])
        return generate(*args, **options)

    monkeypatch.setattr(scenes.Pipeline, "generate", counted)
    told = []
    assert scenes.answer(plan, "uniform", told.append) == first
    assert asked == [] and sum(told) == len(first) == 18
    log, _ = scenes.open_log(plan, "uniform")
    log.path.rename(log.path.with_name("uniform.000000000000.jsonl"))
    assert scenes.answer(plan, "uniform") == first and sorted(asked) == [3] * 9 + [8] * 9


def test_the_script_finds_its_neighbours_when_it_is_run_by_path():
    import subprocess

    done = subprocess.run(
        [sys.executable, str(SCRIPTS / "accuracy.py"), "--help"], check=False, capture_output=True, text=True
    )
    assert done.returncode == 0 and "--methods" in done.stdout, done.stderr


def test_a_budget_that_is_fixed_at_build_time_has_a_bundle_each():
    model = str(SCRIPTS / "shapes")  # 576 tokens, a tower that can come to 116
    found, missing = at_budgets(model, "tome", ["33.3%", "22.2%", "11.1%"])
    assert found == ["tome:keep=192", "tome:keep=128"]
    assert len(missing) == 1 and "tome is left out at 11.1%" in missing[0]
    assert at_budgets(model, "tome:keep=200", ["33.3%"]) == (["tome:keep=200"], [])
    assert at_budgets(model, "uniform", ["33.3%"]) == (["uniform"], [])

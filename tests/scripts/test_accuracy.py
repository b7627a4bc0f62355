"""Accuracy runs ask the same questions of every method, nothing twice, nothing of another version."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import accuracy
import pytest

from evaluation import scenes
from foveate.calib.scenes.questions import HELD_OUT, KINDS

SCRIPTS = Path(__file__).parents[2] / "scripts"


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

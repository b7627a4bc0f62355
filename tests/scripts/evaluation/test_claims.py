"""scripts/claims.py: variants exist, differences are paired, what was removed is counted where it was."""

from __future__ import annotations

import numpy as np
import pytest

from evaluation import claims
from evaluation.bundles import options_of
from foveate.calib.scenes.questions import HELD_OUT, KINDS
from foveate.export import methods


def test_every_variant_is_a_method_with_options_that_it_has():
    for variants in (claims.FEATHER, claims.FSR, claims.SPPRUNER):
        plain = [name for name in variants if ":" not in name]
        for variant in variants:
            name, options = options_of(variant)
            method = methods.load(name, options)
            assert name in plain and (
                not options or method != methods.load(name)
            )  # an option that changes something


def test_differences_are_paired():
    mine = {n: {"right": n in (1, 2, 3, 4)} for n in range(10)}
    theirs = {n: {"right": n in (4, 5)} for n in range(10)}
    difference, low, high = claims.paired(mine, theirs)  # gained 3, lost 1 of 10
    assert difference == pytest.approx(0.2)
    half = 1.96 * ((3 + 1 - 2**2 / 10) ** 0.5) / 10
    assert (low, high) == pytest.approx((0.2 - half, 0.2 + half))
    assert claims.paired(mine, mine) == (0, 0, 0)


def test_quarters_are_counted_from_the_top():
    assert claims.quarters(np.arange(24 * 24), 24, 24).tolist() == [144] * 4
    assert claims.quarters(np.array([0, 23, 24 * 6, 24 * 23, 24 * 24 - 1]), 24, 24).tolist() == [2, 1, 0, 2]
    assert claims.quarters(np.array([], np.int64), 4, 4).tolist() == [0] * 4


def test_an_ablation_is_held_against_its_reference(monkeypatch, capsys, tmp_path):
    """Answers by hand: the part is worth one right answer of four, and half of the FLOPs."""

    def records(right: list[bool], flops: int) -> list[dict]:
        shared = {"keep": 8, "tokens": 8.0, "flops": flops, "seed": 0}
        return [{**shared, "index": n, "right": hit} for n, hit in enumerate(right)]

    told = {
        "none": records([True] * 4, 400),
        "whole": records([True, True, True, False], 200),
        "whole:part=0": records([True, True, False, False], 100),
    }
    monkeypatch.setattr(claims, "answer_all", lambda plan, variants, workers: (told, {}))
    plan = claims.Plan("model", tmp_path, ("50%",), 4, KINDS, HELD_OUT)
    rows = claims.ablation(plan, {"whole": "all", "whole:part=0": "part off"}, "whole")
    assert [row["accuracy"] for row in rows] == [0.75, 0.5]
    assert rows[0]["difference"] is None and rows[1]["difference"][0] == -0.25
    assert [row["flops"] for row in rows] == [0.5, 0.25]
    claims.show("Whole", rows, "all")
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == "### Whole: 8 tokens asked for, 4 questions"
    assert lines[5].startswith("| `whole` | all | 75.0 (") and " |  | 8.0 | 50.0 |" in lines[5]
    assert "| -25.0 (-67.4..+17.4) | 8.0 | 25.0 |" in lines[6]


def test_a_method_that_fails_ends_it(monkeypatch, tmp_path):
    monkeypatch.setattr(claims, "answer_all", lambda *_: ({}, {"fsr": "trace"}))
    with pytest.raises(SystemExit):
        claims.ablation(claims.Plan("model", tmp_path, ("50%",), 4, KINDS, HELD_OUT), claims.FSR, "fsr")

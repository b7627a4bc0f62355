"""Bundles that accuracy runs ask: one for each budget where it is fixed, and whose code made them."""

from __future__ import annotations

from pathlib import Path

from evaluation.bundles import _builders, at_budgets

SCRIPTS = Path(__file__).parents[3] / "scripts"


def test_the_code_of_a_bundle_is_its_own_method_s_and_not_another_s():
    mine = _builders("sppruner")
    assert "foveate.export.methods.sppruner" in mine and "foveate.export.pruning.method" in mine
    assert "foveate.export.build" in mine and "foveate.export.methods.uniform" not in mine
    assert {"foveate.export.methods.vscan", "foveate.export.methods.fastv"} <= set(_builders("vscan+fastv"))


def test_a_budget_that_is_fixed_at_build_time_has_a_bundle_each():
    model = str(SCRIPTS / "shapes")  # 576 tokens, a tower that can come to 116
    found, missing = at_budgets(model, "tome", ["33.3%", "22.2%", "11.1%"])
    assert found == ["tome:keep=192", "tome:keep=128"]
    assert len(missing) == 1 and "tome is left out at 11.1%" in missing[0]
    assert at_budgets(model, "tome:keep=200", ["33.3%"]) == (["tome:keep=200"], [])
    assert at_budgets(model, "uniform", ["33.3%"]) == (["uniform"], [])

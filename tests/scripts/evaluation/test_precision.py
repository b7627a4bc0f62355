"""Names of precisions, and changes that are counted between the same questions."""

from __future__ import annotations

import pytest

from evaluation.bundles import options_of, precision_of
from evaluation.precision import _cell, table
from foveate.export.bundling.precision import Precision


@pytest.mark.parametrize(
    ("variant", "precision"),
    [
        ("sppruner:rho=0.7", Precision("fp32")),
        ("sppruner:rho=0.7@int8", Precision("int8")),
        ("none@int4+vision-int8+head-int4", Precision("int4", head="int4", vision="int8")),
    ],
)
def test_a_variant_names_its_precision(variant, precision):
    assert precision_of(variant) == precision
    assert options_of(variant)[1] == ({"rho": "0.7"} if "rho" in variant else {})


def test_changes_are_counted_question_by_question():
    exact = [{"right": right} for right in (True, True, False, False)]
    other = [{"right": right} for right in (True, False, True, False)]
    cell = _cell(other, exact)
    assert (cell.accuracy, cell.change) == (50, 0)
    assert cell.error == pytest.approx(
        100 * (0.5 / 4) ** 0.5
    )  # two of four changed, although as many are right
    lines = table(
        {"a@fp32": _cell(exact, exact), "a@int8": cell}, {"fp32": 4, "int8": 1}, ["a"], ["fp32", "int8"]
    )
    assert lines[2:] == ["| `fp32` | 50.0 % | 4.0 |", "| `int8` | 50.0 % (+0.0 ± 35.4) | 1.0 |"]

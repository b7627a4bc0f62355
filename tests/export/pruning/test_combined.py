"""Combinations: which methods go together, and whose options are whose."""

from __future__ import annotations

import pytest

from foveate.engines.errors import UserError
from foveate.export import methods


def test_pairs_are_a_method_before_and_one_inside():
    pair = methods.load("sppruner+fastv", {"rho": "0.7", "fastv.layer": "1", "outer": "2"})
    assert (pair.first.rho, pair.second.layer, pair.outer, pair.inner) == (0.7, 1, 2.0, 0.5)
    assert pair.name == "sppruner+fastv"
    described = pair.describe()
    assert described["sppruner.rho"] == 0.7 and described["fastv.layer"] == 1 and described["outer"] == 2.0
    for name, options, words in (
        ("fastv+sppruner", {}, "is no pair"),
        ("sppruner+uniform", {}, "is no pair"),
        ("none+fastv", {}, "is no pair"),
        ("sppruner+fastv", {"position_mode": "keep"}, "both methods have"),
        ("sppruner+fastv", {"rows": "1"}, "unknown option of sppruner"),
        ("sppruner+fastv", {"uniform.layout": "raster"}, "unknown option of sppruner"),
        ("sppruner+fastv", {"outer": "0"}, "bad value for outer"),
        ("sppruner+fastf", {}, "did you mean fastv"),
        ("a+b+c", {}, "names 3 methods"),
    ):
        with pytest.raises(UserError, match=words.replace("+", r"\+")):
            methods.load(name, options)

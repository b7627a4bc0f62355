"""Cells of the tables that the measurements print."""

from __future__ import annotations

from speed.tables import spread


def test_a_cell_has_the_median_and_both_ends() -> None:
    assert spread([0.5, 0.25, 2.0], 2) == "0.50 (0.25..2.00)"
    assert spread(iter([0.001, 0.003]), 1, 1e3) == "2.0 (1.0..3.0)"

"""Labels of plots do not lie over each other."""

from __future__ import annotations

from itertools import pairwise

import pytest


def test_labels_move_apart_and_stay_in_order():
    pytest.importorskip("matplotlib")
    from evaluation.plots import _apart

    moved = _apart([1.0, 1.0, 1.1, 9.0], 2.0)
    assert all(b - a >= 2 - 1e-6 for a, b in pairwise(moved))
    assert abs(sum(moved[:3]) / 3 - 3.1 / 3) < 1e-6 and moved[3] == 9.0

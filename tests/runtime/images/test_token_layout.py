"""Layouts that are the same for all kinds of images, and the shares of a budget."""

from __future__ import annotations

import numpy as np

from foveate.runtime.images.token_layout import single, split


def test_one_tile() -> None:
    plan = single((3, 4))
    assert plan.total == plan.whole.size == 12 and plan.tiles == 1 and not len(plan.newlines)
    assert plan.order.tolist() == plan.patch.tolist() == plan.pieces[0].ravel().tolist() == list(range(12))


def test_a_budget_is_split_in_proportion_and_spent() -> None:
    assert split(640, [576] * 5) == [128] * 5
    assert split(2, [1, 1, 1]) == [1, 1, 0]
    random = np.random.default_rng(2)
    for _ in range(100):
        sizes = random.integers(1, 600, random.integers(1, 6)).tolist()
        budget = int(random.integers(1, sum(sizes) + 1))
        shares = split(budget, sizes)
        assert sum(shares) == budget
        for share, size in zip(shares, sizes, strict=True):
            assert abs(share - budget * size / sum(sizes)) < 1 and share <= size

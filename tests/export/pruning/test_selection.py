"""Ranking: the highest first, of equals the first."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from foveate.export.pruning import selection
from foveate.export.pruning.pre_llm import ScoringPruner


class Example(ScoringPruner):
    def score(self, tokens, taps, keep, grid):
        return tokens[..., 0].float()


@pytest.mark.parametrize("size", [1, 16, 576])
def test_rank_is_a_stable_sort(size):
    generator = np.random.default_rng(size)
    score = generator.integers(0, 7, (3, size)).astype(np.float32) - 3  # many ties
    place = selection.rank(torch.from_numpy(score)).numpy()
    order = np.argsort(-score, axis=1, kind="stable")
    assert (np.take_along_axis(place, order, axis=1) == np.arange(size)).all()


def test_scorer_keeps_the_highest_first_of_equals():
    tokens = torch.tensor([3.0, 1.0, 3.0, 2.0, 3.0])[None, :, None]
    rows, kept, count = Example().reduce(tokens, {}, 2, (1, 5))
    assert kept.tolist() == [[0, 2]] and rows.flatten().tolist() == [3.0, 3.0] and count.tolist() == [2]


def test_rows_move_to_the_front_in_order():
    stays = torch.tensor([[True, False, True, True, False, False, True]])
    order, count = selection.packed(stays)
    assert order.tolist() == [[0, 2, 3, 6, 1, 4, 5]] and count.tolist() == [4]
    order, count = selection.packed(torch.ones(1, 5, dtype=torch.bool))
    assert order.tolist() == [[0, 1, 2, 3, 4]] and count.tolist() == [5]

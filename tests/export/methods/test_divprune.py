"""divprune against a slow transcription in float64, at sizes and options that the golden vectors lack."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transcriptions import cosines

from foveate.export import methods

GRIDS = [(12, 12), (7, 19)]  # 133 tokens: an odd number


def budgets(size: int) -> list[int]:
    return [1, 2, 7, 16, 31, size // 2, size - 1, size]


def farthest(near: np.ndarray, keep: int) -> list[int]:
    distance = 1 - near
    picked = [int(np.argmax(np.sort(distance, axis=0)[1]))]
    while len(picked) < keep:
        gap = distance[picked].min(0)
        gap[picked] = -1
        picked.append(int(np.argmax(gap)))
    return sorted(picked)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_divprune_is_greedy_max_min(bench, grid):
    here, method = bench(grid), methods.load("divprune")
    for seed, keep in enumerate(budgets(here.size)):
        inputs = here.inputs(method, seed)
        kept = here.reduce(method, inputs, keep)[1][0].tolist()
        assert kept == farthest(cosines(inputs["projected"]), keep), (seed, keep)


def test_divprune_takes_one_of_each_before_copies(bench):
    here, method = bench(), methods.load("divprune")
    inputs = here.inputs(method, 0)
    inputs["projected"] = inputs["projected"][:, torch.arange(here.size) % 12]  # 12 tokens, 12 times each
    assert here.reduce(method, inputs, 12)[1][0].tolist() == list(range(12))

"""hiprune against a slow transcription, at sizes and options that the golden vectors lack."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transcriptions import numbers

from foveate.export import methods


def best(score: np.ndarray, among: list[int], number: int) -> list[int]:
    return sorted(among, key=lambda i: (-score[i], i))[:number]


def anchors_and_rest(middle, deep, columns: int, keep: int, alpha: float) -> list[int]:
    size = len(middle)
    chosen = set()
    for i in best(middle, list(range(size)), round(keep * alpha / 5)):
        chosen |= {min(max(j, 0), size - 1) for j in (i, i - 1, i + 1, i - columns, i + columns)}
    rest = [i for i in range(size) if i not in chosen]
    return sorted([*chosen, *best(deep, rest, keep - len(chosen))])


@pytest.mark.parametrize("grid", [(12, 12), (7, 19), (1, 30)], ids=str)
@pytest.mark.parametrize("alpha", [0.0, 0.1, 0.5])
def test_hiprune_keeps_objects_their_neighbours_and_the_rest(bench, grid, alpha):
    here, method = bench(grid), methods.load("hiprune", {"alpha": str(alpha)})
    middle, deep = method.taps(here.spec)
    for seed, keep in enumerate((1, 5, 15, 25, 28, 30)):  # 25 x 0.5 / 5 is a half: rounded to even
        inputs = here.inputs(method, seed)
        expected = anchors_and_rest(numbers(inputs, middle), numbers(inputs, deep), grid[1], keep, alpha)
        assert here.reduce(method, inputs, keep)[1][0].tolist() == expected, (seed, keep)


def test_hiprune_neighbours_wrap_and_clamp_as_published(bench):
    here, method = bench(), methods.load("hiprune")
    inputs = here.inputs(method, 0)
    middle, deep = method.taps(here.spec)
    inputs[middle], inputs[deep] = torch.zeros(1, 144), torch.linspace(0, 1, 144)[None]
    inputs[middle][0, 24] = 1  # column 0 of row 2: its left neighbour is the end of row 1
    assert here.reduce(method, inputs, 30)[1][0, :5].tolist() == [12, 23, 24, 25, 36]
    inputs[middle][0, 24], inputs[middle][0, 5] = 0, 1  # row 0: above it is the first token
    assert here.reduce(method, inputs, 30)[1][0, :5].tolist() == [0, 4, 5, 6, 17]


def test_hiprune_budgets_below_anchors_and_neighbours(bench):
    here, method = bench(), methods.load("hiprune", {"alpha": "1"})
    inputs = here.inputs(method, 1)
    middle, deep = (numbers(inputs, name) for name in method.taps(here.spec))
    (anchor,) = best(middle, list(range(144)), 1)
    around = [min(max(anchor + step, 0), 143) for step in (-12, -1, 1, 12)]
    assert here.reduce(method, inputs, 3)[1][0].tolist() == sorted([anchor, *best(deep, around, 2)])

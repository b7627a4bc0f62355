"""pool against a slow transcription in float64."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
import torch.nn.functional as F
from transcriptions import Row, check, numbers

from foveate.export import methods

GRIDS = [(12, 12), (7, 19), (1, 30)]


def budgets(size: int) -> list[int]:
    return [1, 2, 3, 7, 16, 29, size // 2, size - 1, size]


def cells(tokens, grid: tuple[int, int], keep: int) -> list[Row]:
    rows, columns = grid
    fits = [(r, c) for r in range(1, rows + 1) for c in range(1, columns + 1) if r * c <= keep]
    down, across = min(fits, key=lambda f: Fraction(rows, f[0]) ** 2 + Fraction(columns, f[1]) ** 2)
    found = []
    for i in range(down):
        for j in range(across):
            ys = [y for y in range(rows) if y * down // rows == i]
            xs = [x for x in range(columns) if x * across // columns == j]
            members = [y * columns + x for y in ys for x in xs]
            middle = ys[(len(ys) - 1) // 2] * columns + xs[(len(xs) - 1) // 2]
            found.append((middle, members, tokens[members].mean(0)))
    return found


@pytest.mark.parametrize("grid", [*GRIDS, (24, 24), (9, 16)], ids=str)
def test_pool_averages_cells(bench, grid):
    here, method = bench(grid), methods.load("pool")
    inputs = here.inputs(method, 0)
    tokens = numbers(inputs, "projected")
    for keep in budgets(here.size):
        check(here.reduce(method, inputs, keep), cells(tokens, grid, keep), keep)


@pytest.mark.parametrize("keep", [1, 4, 9, 16, 36, 64, 144])
def test_pool_is_adaptive_average_pooling_where_sides_divide(bench, keep):
    here, method = bench((24, 24)), methods.load("pool")
    inputs = here.inputs(method, 0)
    rows, _, count, _ = here.reduce(method, inputs, keep)
    assert int(count) == keep
    image = inputs["projected"].transpose(1, 2).reshape(1, -1, 24, 24)
    pooled = F.adaptive_avg_pool2d(image, round(keep**0.5)).flatten(2).transpose(1, 2)
    torch.testing.assert_close(rows, pooled, rtol=0, atol=1e-5)


def test_pool_cells_at_the_usual_budgets(bench):
    here, method = bench((24, 24)), methods.load("pool")
    inputs = here.inputs(method, 0)
    counts = [int(here.reduce(method, inputs, keep)[2]) for keep in (32, 64, 128, 192)]
    assert counts == [30, 64, 121, 192]  # 5 x 6, 8 x 8, 11 x 11, 12 x 16

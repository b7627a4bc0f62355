"""Rows that are gathered late are those that NumPy picks at once."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from foveate.engines.row_gather import Rows


def scene(random: np.random.Generator, *rest: int) -> tuple[Rows, np.ndarray]:
    """Rows through a few joins and picks, and the same made by NumPy as it goes."""
    found = []
    for _ in range(random.integers(1, 5)):
        source = random.standard_normal((random.integers(1, 4), random.integers(1, 6), *rest))
        rows, array = Rows(source), source.reshape(-1, *rest)
        for _ in range(random.integers(0, 3)):
            index = random.integers(-len(array), len(array), random.integers(1, 9))
            rows, array = rows.take(index), array[index]
        found.append((rows, array))
    rows, array = Rows.join([rows for rows, _ in found]), np.concatenate([array for _, array in found])
    order = random.permutation(len(array))
    first = slice(random.integers(0, len(array)))
    kept = random.random(len(array)) < 0.7
    for index in (order, kept, first):
        if len(array[index]):
            rows, array = rows.take(index), array[index]
            if index is kept:
                first = slice(random.integers(0, len(array)))
    return rows, array


@pytest.mark.parametrize("rest", [(5,), (), (2, 3)])
@pytest.mark.parametrize("seed", range(40))
def test_joins_and_picks(seed: int, rest: tuple[int, ...]) -> None:
    rows, array = scene(np.random.default_rng(seed), *rest)
    assert len(rows) == len(array) and rows.shape == array.shape
    np.testing.assert_array_equal(rows.numpy(), array)
    assert rows.numpy("float16").dtype == np.float16
    parts = list(rows.parts())
    assert all(one != other for (one, _), (other, _) in pairwise(parts))


def test_a_newline_is_the_last_row() -> None:
    image, newline = np.arange(12.0).reshape(2, 3, 2), np.array([9.0, 9.0])
    rows = Rows.join([Rows(image), Rows(newline[None, None])]).take(np.array([5, -1, 0, 1, -1]))
    assert rows.numpy().tolist() == [[10, 11], [9, 9], [0, 1], [2, 3], [9, 9]]
    assert [(number, index.tolist()) for number, index in rows.parts()] == [
        (0, [5]),
        (1, [0]),
        (0, [0, 1]),
        (1, [0]),
    ]


def test_nothing_is_a_part_without_rows() -> None:
    rows = Rows.join([Rows(np.ones((1, 2, 3))), Rows(np.zeros((1, 1, 3)))]).take(slice(0))
    assert rows.shape == rows.numpy().shape == (0, 3)


def test_widths_must_agree() -> None:
    with pytest.raises(ValueError, match=r"do not fit each other .*\(3,\).*\(4,\)"):
        Rows.join([Rows(np.ones((1, 2, 3))), Rows(np.ones((1, 2, 4)))])

"""Shared by transcriptions of methods: inputs in float64, cosines, and the comparison of mixtures."""

from __future__ import annotations

import numpy as np
import torch

Row = tuple[int, list[int], np.ndarray]
"""Place of a row (-1: none), the tokens that it is made of, and the row."""


def numbers(inputs: dict[str, torch.Tensor], name: str) -> np.ndarray:
    return inputs[name][0].double().numpy()


def cosines(x: torch.Tensor) -> np.ndarray:
    x = x[0].double().numpy()
    x = x / np.linalg.norm(x, axis=1, keepdims=True)
    near = x @ x.T
    np.fill_diagonal(near, 1)  # not 1 less rounding, which would break ties
    return near


def check(out: tuple[torch.Tensor, ...], expected: list[Row], about: object) -> None:
    rows, kept, count, owner = (x[0] for x in out)
    assert int(count) == len(expected), about
    assert kept[: len(expected)].tolist() == [place for place, _, _ in expected], about
    went = {i: row for row, (_, members, _) in enumerate(expected) for i in members}
    assert owner.tolist() == [went.get(i, -1) for i in range(len(owner))], about
    theirs = np.array([row for _, _, row in expected])
    np.testing.assert_allclose(rows[: len(expected)].numpy(), theirs, rtol=0, atol=1e-5)

"""vispruner against a slow transcription in float64, at sizes and options that the golden vectors lack."""

from __future__ import annotations

import numpy as np
import pytest
from transcriptions import cosines

from foveate.export import methods

GRIDS = [(12, 12), (7, 19)]  # 133 tokens: an odd number


def budgets(size: int) -> list[int]:
    return [1, 2, 7, 16, 31, size // 2, size - 1, size]


def thinned(near: np.ndarray, attention: np.ndarray, keep: int, ratio: float, step: int) -> list[int]:
    order = np.argsort(-attention, kind="stable").tolist()
    important = int(keep * ratio)
    chosen, rest = order[:important], order[important:]
    wanted = keep - important
    while 0 < wanted < len(rest):
        even, odd = rest[0::2], rest[1::2]
        leave = min(step, len(rest) - wanted)
        alike = near[np.ix_(even, odd)].max(1)
        rest = [even[i] for i in np.argsort(-alike, kind="stable")[leave:]] + odd
    return sorted(chosen + rest[: max(wanted, 0)])


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize(
    "options", [{}, {"ratio": "0.25", "step": "3"}, {"ratio": "0"}, {"ratio": "1"}], ids=str
)
def test_vispruner_thins_the_list_out(bench, options, grid):
    here, method = bench(grid), methods.load("vispruner", options)
    for seed, keep in enumerate(budgets(here.size)):
        inputs = here.inputs(method, seed)
        attention = inputs["cls_attention.2"][0].double().numpy()
        expected = thinned(cosines(inputs["features"]), attention, keep, method.ratio, method.step)
        assert here.reduce(method, inputs, keep)[1][0].tolist() == expected, (seed, keep)

"""uniform spreads tokens evenly, for every budget."""

from __future__ import annotations

import numpy as np
import pytest

from foveate.export import methods


def test_uniform_is_the_strided_grid_where_there_is_one(bench):
    here, method = bench((24, 24)), methods.load("uniform")
    inputs = here.inputs(method, 0)
    index = np.arange(576).reshape(24, 24)
    assert here.reduce(method, inputs, 144)[1][0].tolist() == index[1::2, 1::2].flatten().tolist()
    assert here.reduce(method, inputs, 64)[1][0].tolist() == index[1::3, 1::3].flatten().tolist()


@pytest.mark.parametrize("layout", ["grid", "raster"])
@pytest.mark.parametrize("grid", [(12, 12), (7, 19), (19, 7), (2, 40), (40, 1)], ids=str)
def test_uniform_is_even_for_every_budget(bench, grid, layout):
    here, method = bench(grid), methods.load("uniform", {"layout": layout})
    inputs = here.inputs(method, 0)
    for keep in range(1, here.size + 1):
        kept = here.reduce(method, inputs, keep)[1][0].numpy()
        assert len(kept) == keep and (np.diff(kept) > 0).all()
        if layout == "raster":
            gaps = np.diff(kept)
            assert keep == 1 or gaps.max() - gaps.min() <= 1
        else:  # rows that are used share the tokens evenly
            share = np.bincount(kept // grid[1], minlength=grid[0])
            assert share.max() - share[share > 0].min() <= 1

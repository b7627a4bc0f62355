"""random depends on its seed alone, and every token has the same chance."""

from __future__ import annotations

import numpy as np
import torch

from foveate.export import methods


def test_random_depends_on_the_seed_alone_and_is_even(bench):
    here = bench((24, 24))
    kept = {}
    times = np.zeros(576)
    for seed in range(400):
        method = methods.load("random", {"seed": str(seed)})
        a = here.reduce(method, here.inputs(method, seed=seed), 144)[1]
        assert torch.equal(a, here.reduce(method, here.inputs(method, seed=seed + 1), 144)[1])
        kept[seed] = tuple(a[0].tolist())
        times[list(kept[seed])] += 1
    assert len(set(kept.values())) == 400
    deviation = (times / 400 - 0.25) / np.sqrt(0.25 * 0.75 / 400)
    assert abs(deviation).max() < 4.5 and 0.85 < deviation.std() < 1.15

"""SmoothQuant against its definition."""

from __future__ import annotations

import torch

from foveate.calib.smoothing import smoothquant


def test_smoothquant_is_equation_4(rows, weights):
    absmax = rows.abs().amax(0)
    absmax[5] = 0
    found = smoothquant.factors(absmax, weights)
    reads = torch.cat(weights, 1).abs().amax(1)
    expected = absmax.sqrt() / reads.sqrt()
    expected[5] = 1
    torch.testing.assert_close(found, expected)
    difficulty = (absmax / found).max() / (absmax / found)[absmax > 0].min()
    assert difficulty < 0.2 * absmax.max() / absmax[absmax > 0].min()  # moved into the weights

"""AWQ against its definition."""

from __future__ import annotations

import pytest
import torch

from foveate.calib.schemes import int4
from foveate.calib.smoothing import awq


def test_awq_tries_the_rounding_that_int4_does(weights):
    expected = int4.SCHEME.quantize(weights[0].numpy()).dequantize()
    torch.testing.assert_close(
        awq.rounded(weights[0], int4.BLOCK), torch.from_numpy(expected), atol=1e-6, rtol=0
    )


def error_of_int4(rows, weights, factor):
    total = 0.0
    for weight in weights:
        quantized = torch.from_numpy(int4.SCHEME.quantize((weight * factor[:, None]).numpy()).dequantize())
        total += ((rows / factor) @ quantized - rows @ weight).square().sum().item()
    return total


def test_awq_is_the_best_of_its_grid_and_halves_the_error_of_outliers(rows, weights):
    mean = rows.abs().mean(0)
    found = awq.factors(rows, mean, weights)
    grid = [mean ** (step / awq.STEPS) for step in range(awq.STEPS)]
    grid = [scale / (scale.max() * scale.min()).sqrt() for scale in grid]
    errors = [error_of_int4(rows, weights, scale) for scale in grid]
    assert error_of_int4(rows, weights, found) == pytest.approx(min(errors), rel=1e-3)
    assert min(errors) < 0.5 * errors[0]  # errors[0]: to nearest


def test_awq_leaves_alone_what_is_not_quantized():
    assert awq.factors(torch.ones(4, 48), torch.ones(48), [torch.ones(48, 8)]) is None

"""AWQ, SmoothQuant and the clip of static ranges, each against its definition."""

from __future__ import annotations

import pytest
import torch

from foveate.calib import activation_watch
from foveate.calib.schemes import int4
from foveate.calib.smoothing import awq, smoothquant


@pytest.fixture
def rows():
    """Activations with four channels that are 50 times as large."""
    x = torch.randn(64, 256, generator=torch.Generator().manual_seed(0))
    x[:, [3, 77, 130, 200]] *= 50
    return x


@pytest.fixture
def weights():
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(256, width, generator=generator) / 16 for width in (64, 32)]


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


def error_of_int8(x, clip):
    step = clip / 127
    return ((x / step).round().clamp(-127, 127) * step - x).square().sum().item()


def clip(x):
    watch = activation_watch.InputWatch(2, x.shape[1])
    for part in x.chunk(4):
        watch.see(part)
    torch.testing.assert_close(watch.absmax, x.abs().amax(0))
    torch.testing.assert_close(watch.mean_abs, x.abs().mean(0))
    return watch.clip()


@pytest.mark.parametrize(("outlier", "low", "high"), [(0, 3, 5), (30, 10, 25), (1000, 900, 1100)])
def test_the_clip_is_the_one_of_the_least_squared_error(outlier, low, high):
    x = torch.randn(200_000, generator=torch.Generator().manual_seed(2))
    x[0] += outlier
    found = clip(x[:, None])
    candidates = [float(x.abs().max()) * 2 ** (-step / 8) for step in range(64)]
    best = min(error_of_int8(x, clip) for clip in candidates)
    assert error_of_int8(x, found) < 1.06 * best  # sizes are known to 1/16
    assert low < found < high


def test_nothing_but_zeros_has_a_range():
    assert clip(torch.zeros(4, 4)) > 0

"""The clip of static ranges against its definition."""

from __future__ import annotations

import pytest
import torch

from foveate.calib import activation_watch


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

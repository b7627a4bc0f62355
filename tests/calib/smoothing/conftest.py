"""Activations with outliers, and the weights that they meet."""

from __future__ import annotations

import pytest
import torch


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

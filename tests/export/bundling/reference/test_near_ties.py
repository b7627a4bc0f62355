"""Near-ties of a pruner's choice are found by noise, and nothing else is."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from foveate.export.bundling.reference.near_ties import near_ties
from foveate.runtime.compiling.comparison import LIMITS

NARROW, WIDE = LIMITS["float32"].noise, LIMITS["float16"].noise


def highest(inputs: list[Tensor]) -> dict[str, Tensor]:
    """Keep the three tokens with the highest scores; the last row is the mean of all others."""
    tokens, scores = inputs
    kept = scores.topk(3).indices.sort().values
    others = torch.ones_like(scores, dtype=torch.bool).scatter(1, kept, False)
    mixture = tokens[others].mean(0)[None, None]
    rows = torch.cat([tokens[0, kept[0]][None], mixture], dim=1)
    return {"tokens": rows, "kept": torch.cat([kept, torch.tensor([[-1]])], 1), "count": torch.tensor([4])}


def found(scores: list[float]) -> dict[str, np.ndarray]:
    tokens = torch.randn(1, len(scores), 16, generator=torch.Generator().manual_seed(1))
    inputs = [tokens, torch.tensor([scores])]
    return near_ties(highest, inputs, highest(inputs))


def test_a_clear_choice_has_none():
    ties = found([5.0, 1.0, 4.0, 2.0, 3.0])
    assert np.isinf(ties["kept_noise"]).all() and np.isinf(ties["tokens_noise"]).all()
    assert len(ties["tokens_noise"]) == 4


def test_a_tie_within_rounding():
    ties = found([5.0, 1.0, 4.0, 3.00001, 3.0])
    np.testing.assert_array_equal(ties["kept_noise"], np.float32([np.inf, np.inf, np.inf, NARROW, NARROW]))
    # the third kept row is another patch then, and the mixture has lost one and gained one
    np.testing.assert_array_equal(ties["tokens_noise"], np.float32([np.inf, np.inf, NARROW, NARROW]))


def test_a_tie_within_the_rounding_of_float16_only():
    ties = found([5.0, 1.0, 4.0, 3.005, 3.0])
    np.testing.assert_array_equal(ties["kept_noise"][3:], np.float32([WIDE, WIDE]))
    np.testing.assert_array_equal(ties["tokens_noise"], np.float32([np.inf, np.inf, WIDE, WIDE]))


def test_the_noise_is_the_same_in_every_build():
    first, second = (found([5.0, 1.0, 4.0, 3.002, 3.0]) for _ in range(2))
    for name, values in first.items():
        np.testing.assert_array_equal(values, second[name])

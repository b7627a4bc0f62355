"""Weights that are laid over others."""

from __future__ import annotations

import torch

from foveate.export.checkpoints.layered_weights import LayeredWeights, TensorWeights, packed


def test_the_upper_layer_hides_the_lower_one():
    lower = TensorWeights({"both": torch.zeros(2), "lower": torch.zeros(3)})
    lower.packed = {"lower": lambda: None}
    weights = LayeredWeights(TensorWeights({"both": torch.ones(2), "upper": torch.ones(4)}), lower)
    assert all(name in weights for name in ("both", "lower", "upper")) and "other" not in weights
    found = {name: weights.get(name).sum().item() for name in ("both", "lower", "upper")}
    assert found == {"both": 2, "lower": 0, "upper": 4}
    assert packed(weights).keys() == {"lower"} and not packed(TensorWeights({}))

"""Order and scale of the tokens change nothing where a method's mathematics says so."""

from __future__ import annotations

import pytest
import torch

from foveate.export import methods


@pytest.mark.parametrize("name", ["cdpruner", "divprune", "fsr", "trim", "vispruner"])
def test_the_order_of_tokens_does_not_matter(bench, name):
    here, method = bench(), methods.load(name)
    inputs = here.inputs(method, 3)
    shuffle = torch.randperm(here.size, generator=torch.Generator().manual_seed(0))
    text = ("text_embeds", "clip_text")
    shuffled = {key: x if key in text else x[:, shuffle] for key, x in inputs.items()}
    kept, moved = (here.reduce(method, each, 40)[1][0] for each in (inputs, shuffled))
    assert shuffle[moved[moved >= 0]].sort().values.tolist() == kept[kept >= 0].tolist()


@pytest.mark.parametrize(
    "name", ["cdpruner", "divprune", "fsr", "holov", "trim", "visionzip", "vispruner", "vscan"]
)
def test_the_length_of_tokens_does_not_matter(bench, name):
    here, method = bench(), methods.load(name)
    inputs = here.inputs(method, 4)
    scaled = {key: x if "attention" in key else 8 * x for key, x in inputs.items()}
    assert torch.equal(here.reduce(method, inputs, 40)[1], here.reduce(method, scaled, 40)[1])


@pytest.mark.parametrize("name", ["divprune", "cdpruner"])
def test_a_larger_budget_keeps_a_superset(bench, name):
    here, method = bench(), methods.load(name)
    inputs, smaller = here.inputs(method, 5), set()
    for keep in (1, 8, 40, 41):
        kept = set(here.reduce(method, inputs, keep)[1][0].tolist())
        assert smaller < kept
        smaller = kept

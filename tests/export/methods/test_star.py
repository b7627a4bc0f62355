"""star against both formulas written out, token by token, in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from foveate.engines.errors import UserError
from foveate.export import methods
from foveate.export.graphs.assemble import assemble
from foveate.export.models import llava
from foveate.runtime.llm.budget import stage_keep


def softmax(values: list[float]) -> list[float]:
    weight = np.exp(np.array(values) - max(values))
    return (weight / weight.sum()).tolist()


def best(score: dict[int, float], keep: int) -> tuple[list[int], float]:
    order = sorted(score, key=lambda i: (-score[i], i))
    margin = score[order[keep - 1]] - score[order[keep]] if keep < len(order) else np.inf
    return sorted(order[:keep]), margin


def test_the_first_stage(bench):
    here, method, compared = bench(), methods.load("star").pre_llm, 0
    for seed, keep in enumerate((1, 16, 48, 143, 144)):
        inputs = here.inputs(method, seed)
        tokens = inputs["projected"][0].double().numpy()
        received = dict.fromkeys(range(here.size), 0.0)
        for query in tokens:
            for i, weight in enumerate(softmax([query @ key / np.sqrt(tokens.shape[1]) for key in tokens])):
                received[i] += weight
        expected, margin = best(received, keep)
        if margin > 1e-5:
            compared += 1
            assert here.reduce(method, inputs, keep)[1][0].tolist() == expected, (seed, keep)
    assert compared >= 4


@pytest.mark.parametrize("layout", [(5, -64, 9), (3, -30, 4, -64, 6)], ids=str)
def test_the_second_stage(model, layout):
    here, compared = model(methods.load("star")), 0
    for seed, keep in enumerate((1, 2, 7, 16, 29)):
        feeds = here.prompt(seed, keep, layout)
        known = here.reference(feeds, 4)
        expected, margin = [], np.inf
        for rows in known.images:
            words = [i for i in range(rows[-1] + 1, len(known.hidden)) if known.image[i] < 0]
            received = dict.fromkeys(rows, 0.0)
            for word in words:
                scores = [known.hidden[word] @ known.hidden[i] / np.sqrt(known.hidden.shape[1]) for i in rows]
                for i, weight in zip(rows, softmax(scores), strict=True):
                    received[i] += weight / len(words)
            found, gap = best(received, keep)
            expected, margin = expected + found, min(margin, gap)
        if margin > 1e-6:
            compared += 1
            assert [i for i in here.left(feeds) if known.image[i] >= 0] == expected, (seed, keep)
    assert compared >= 4


@pytest.mark.parametrize(
    ("early", "stages", "given"),
    [
        ("0.5", ["pruner", "pruner.0"], 192),
        ("0", ["pruner.0"], None),
        ("1", ["pruner"], 64),
        ("0.25", ["pruner", "pruner.0"], 333),
    ],
)
def test_stages_and_what_they_are_given(early, stages, given):
    parts, method = llava.tiny(layers=4), methods.load("star", {"early": early})
    names = [graph.spec.name for graph in assemble(parts, method)]
    assert [name for name in names if name.startswith("pruner")] == stages
    points = method.budgets(parts.spec)
    assert set(points) <= {"pruner"}
    if given:
        assert stage_keep(points["pruner"], 64, 576) == given
        assert stage_keep(points["pruner"], 576, 576) == 576


def test_it_is_a_pair_already():
    for name in ("star+fastv", "vscan+star"):
        with pytest.raises(UserError, match="is no pair") as error:
            methods.load(name)
        assert error.value.code == 2


def test_order_of_tokens_does_not_matter(model):
    here = model(methods.load("star"))
    feeds = here.prompt(1)
    before = [i - 5 for i in here.left(feeds) if 5 <= i < 69]
    shuffle = torch.randperm(64, generator=torch.Generator().manual_seed(0))
    feeds["hidden"][0, 5:69] = feeds["hidden"][0, 5:69][shuffle]
    after = [i - 5 for i in here.left(feeds) if 5 <= i < 69]
    assert shuffle[after].sort().values.tolist() == before

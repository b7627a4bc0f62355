"""Options, discovery, taps, and the selection that ranking methods share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import pytest
import torch

from foveate.engines.errors import UserError
from foveate.export import methods
from foveate.export.pruning import selection
from foveate.export.pruning.options import option, parse
from foveate.export.pruning.pre_llm import ScoringPruner
from foveate.export.pruning.taps import tap


@dataclass(frozen=True)
class Example(ScoringPruner):
    ratio: float = option(0.5, 0, 1)
    window: Literal[3, 5] = 3
    layers: tuple[int, ...] = (1, 2)
    merge: bool = False
    limit: int | None = None

    def score(self, tokens, taps, keep, grid):
        return tokens[..., 0].float()


def example(**text: str) -> Example:
    return Example(
        **{key: parse("example", key, value, Example.options()[key]) for key, value in text.items()}
    )


def test_every_file_is_a_method():
    assert {"none", "random", "uniform"} <= set(methods.names())
    assert "base" not in methods.names()
    for name in methods.names():
        assert methods.load(name).name == name


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ({"ratio": "0.25"}, 0.25),
        ({"ratio": "1"}, 1.0),
        ({"window": "5"}, 5),
        ({"layers": "3,4,5"}, (3, 4, 5)),
        ({"layers": "(7,)"}, (7,)),
        ({"merge": "true"}, True),
        ({"merge": "False"}, False),
        ({"limit": "none"}, None),
        ({"limit": "9"}, 9),
        ({"position_mode": "keep"}, "keep"),
    ],
)
def test_options_are_parsed_by_type(text, value):
    got = getattr(example(**text), *text)
    assert got == value and type(got) is type(value)


@pytest.mark.parametrize(
    "text",
    [
        {"ratio": "1.5"},
        {"ratio": "nan"},
        {"ratio": "much"},
        {"window": "4"},
        {"layers": "1,x"},
        {"merge": "maybe"},
        {"limit": "some"},
        {"position_mode": "both"},
    ],
)
def test_bad_values_are_refused(text):
    with pytest.raises(
        UserError, match=rf"bad value for {next(iter(text))} \| got .* expected .* \| --set"
    ) as error:
        example(**text)
    assert error.value.code == 2


def test_unknown_names_are_answered_with_the_nearest():
    with pytest.raises(UserError, match="did you mean uniform"):
        methods.load("unifrom")
    with pytest.raises(UserError, match="did you mean layout"):
        methods.load("uniform", {"layuot": "grid"})


def test_taps_are_resolved(bench):
    spec = bench().spec
    assert tap(spec, "cls_attention") == "cls_attention.2"
    assert tap(spec, "hidden", 1) == "hidden.1"
    assert tap(spec, "features") == "features"
    with pytest.raises(UserError, match=r"runs 3 layers, expected -3\.\.2"):
        tap(spec, "keys", 3)


@pytest.mark.parametrize("size", [1, 16, 576])
def test_rank_is_a_stable_sort(size):
    generator = np.random.default_rng(size)
    score = generator.integers(0, 7, (3, size)).astype(np.float32) - 3  # many ties
    place = selection.rank(torch.from_numpy(score)).numpy()
    order = np.argsort(-score, axis=1, kind="stable")
    assert (np.take_along_axis(place, order, axis=1) == np.arange(size)).all()


def test_scorer_keeps_the_highest_first_of_equals():
    tokens = torch.tensor([3.0, 1.0, 3.0, 2.0, 3.0])[None, :, None]
    rows, kept, count = Example().reduce(tokens, {}, 2, (1, 5))
    assert kept.tolist() == [[0, 2]] and rows.flatten().tolist() == [3.0, 3.0] and count.tolist() == [2]


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


def test_uniform_is_the_strided_grid_where_there_is_one(bench):
    here, method = bench((24, 24)), methods.load("uniform")
    inputs = here.inputs(method, 0)
    index = np.arange(576).reshape(24, 24)
    assert here.reduce(method, inputs, 144)[1][0].tolist() == index[1::2, 1::2].flatten().tolist()
    assert here.reduce(method, inputs, 64)[1][0].tolist() == index[1::3, 1::3].flatten().tolist()


@pytest.mark.parametrize("layout", ["grid", "raster"])
@pytest.mark.parametrize("grid", [(12, 12), (7, 19), (19, 7), (2, 40), (40, 1)], ids=str)
def test_uniform_is_even_for_every_budget(bench, grid, layout):
    here, method = bench(grid), methods.load("uniform", {"layout": layout})
    inputs = here.inputs(method, 0)
    for keep in range(1, here.size + 1):
        kept = here.reduce(method, inputs, keep)[1][0].numpy()
        assert len(kept) == keep and (np.diff(kept) > 0).all()
        if layout == "raster":
            gaps = np.diff(kept)
            assert keep == 1 or gaps.max() - gaps.min() <= 1
        else:  # rows that are used share the tokens evenly
            share = np.bincount(kept // grid[1], minlength=grid[0])
            assert share.max() - share[share > 0].min() <= 1

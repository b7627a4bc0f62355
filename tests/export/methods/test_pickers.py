"""cdpruner, divprune and vispruner against slow transcriptions in float64, at sizes and options that the golden vectors
lack; what their mathematics says of order and scale."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from foveate.export import methods

GRIDS = [(12, 12), (7, 19)]  # 133 tokens: an odd number


def cosines(x: torch.Tensor) -> np.ndarray:
    x = x[0].double().numpy()
    x = x / np.linalg.norm(x, axis=1, keepdims=True)
    near = x @ x.T
    np.fill_diagonal(near, 1)  # not 1 less rounding, which would break ties
    return near


def stretched(cue: np.ndarray) -> np.ndarray:
    return (cue - cue.min() + 1e-6) / (cue.max() - cue.min())


def budgets(size: int) -> list[int]:
    return [1, 2, 7, 16, 31, size // 2, size - 1, size]


# ------------------------------------------------------------------ divprune


def farthest(near: np.ndarray, keep: int) -> list[int]:
    distance = 1 - near
    picked = [int(np.argmax(np.sort(distance, axis=0)[1]))]
    while len(picked) < keep:
        gap = distance[picked].min(0)
        gap[picked] = -1
        picked.append(int(np.argmax(gap)))
    return sorted(picked)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_divprune_is_greedy_max_min(bench, grid):
    here, method = bench(grid), methods.load("divprune")
    for seed, keep in enumerate(budgets(here.size)):
        inputs = here.inputs(method, seed)
        kept = here.reduce(method, inputs, keep)[1][0].tolist()
        assert kept == farthest(cosines(inputs["projected"]), keep), (seed, keep)


def test_divprune_takes_one_of_each_before_copies(bench):
    here, method = bench(), methods.load("divprune")
    inputs = here.inputs(method, 0)
    inputs["projected"] = inputs["projected"][:, torch.arange(here.size) % 12]  # 12 tokens, 12 times each
    assert here.reduce(method, inputs, 12)[1][0].tolist() == list(range(12))


# ------------------------------------------------------------------ cdpruner


def likeliest(near: np.ndarray, wanted: np.ndarray, keep: int) -> list[int]:
    """The token that raises the determinant most, by determinants."""
    kernel, picked = wanted[:, None] * near * wanted[None, :], []
    for _ in range(keep):
        gains = {
            i: np.linalg.slogdet(kernel[np.ix_([*picked, i], [*picked, i])])[1]
            for i in range(len(wanted))
            if i not in picked
        }
        picked.append(max(gains, key=lambda i: (gains[i], -i)))
    return sorted(picked)


@pytest.mark.parametrize(
    ("options", "sign"),
    [
        ({}, -1),
        ({"relevance": "none"}, 0),
        ({"relevance": "embeddings"}, 1),
        ({"sign": "positive"}, 1),
        ({"theta": "0.8"}, -1),
    ],
    ids=str,
)
def test_cdpruner_raises_the_determinant_most(bench, options, sign):
    here, method = bench((6, 6)), methods.load("cdpruner", options)
    for seed, keep in enumerate((1, 3, 10, 20)):
        inputs = here.inputs(method, seed)
        wanted = np.ones(here.size)
        if sign:
            clip = "clip_image" in inputs
            patches, text = (
                inputs[name][0].double()
                for name in (("clip_image", "clip_text") if clip else ("projected", "text_embeds"))
            )
            cosine = torch.cosine_similarity(patches[:, None], text[None], dim=-1).mean(1)
            wanted = stretched(sign * cosine.numpy())
        if method.theta is not None:
            wanted = np.exp(method.theta / (2 * (1 - method.theta)) * wanted)
        kept = here.reduce(method, inputs, keep)[1][0].tolist()
        assert kept == likeliest(cosines(inputs["projected"]), wanted, keep), (seed, keep)


def test_cdpruner_goes_on_when_the_picked_tokens_explain_all_others(bench):
    """More picks than dimensions: the rest follow by relevance."""
    here, method = bench(width=6), methods.load("cdpruner")
    inputs = here.inputs(method, 0)
    relevance = method.wanted(inputs["projected"], {tap: inputs[tap] for tap in method.taps(here.spec)})[0]
    spanning, more = (set(here.reduce(method, inputs, keep)[1][0].tolist()) for keep in (6, 20))
    others = [i for i in relevance.argsort(descending=True).tolist() if i not in spanning]
    assert more == spanning | set(others[:14])


def test_cdpruner_without_a_question_is_diversity_alone(bench):
    here = bench()
    method, plain = methods.load("cdpruner"), methods.load("cdpruner", {"relevance": "none"})
    inputs = here.inputs(method, 0)
    silent = inputs | {"clip_text": torch.zeros_like(inputs["clip_text"][:, :1])}
    without = here.reduce(plain, inputs, 32)[1]
    assert torch.equal(here.reduce(method, silent, 32)[1], without)
    assert not torch.equal(here.reduce(method, inputs, 32)[1], without)


# ------------------------------------------------------------------ vispruner


def thinned(near: np.ndarray, attention: np.ndarray, keep: int, ratio: float, step: int) -> list[int]:
    order = np.argsort(-attention, kind="stable").tolist()
    important = int(keep * ratio)
    chosen, rest = order[:important], order[important:]
    wanted = keep - important
    while 0 < wanted < len(rest):
        even, odd = rest[0::2], rest[1::2]
        leave = min(step, len(rest) - wanted)
        alike = near[np.ix_(even, odd)].max(1)
        rest = [even[i] for i in np.argsort(-alike, kind="stable")[leave:]] + odd
    return sorted(chosen + rest[: max(wanted, 0)])


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize(
    "options", [{}, {"ratio": "0.25", "step": "3"}, {"ratio": "0"}, {"ratio": "1"}], ids=str
)
def test_vispruner_thins_the_list_out(bench, options, grid):
    here, method = bench(grid), methods.load("vispruner", options)
    for seed, keep in enumerate(budgets(here.size)):
        inputs = here.inputs(method, seed)
        attention = inputs["cls_attention.2"][0].double().numpy()
        expected = thinned(cosines(inputs["features"]), attention, keep, method.ratio, method.step)
        assert here.reduce(method, inputs, keep)[1][0].tolist() == expected, (seed, keep)


# ------------------------------------------------------------------ order and scale


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

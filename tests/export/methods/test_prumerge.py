"""prumerge against a slow transcription of the published code in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from foveate.export import methods

GRIDS = [(12, 12), (7, 19), (1, 30), (24, 24)]


def published(x, attention, keys, keep: int, variant: str, neighbours: int) -> tuple[list[int], np.ndarray]:
    """Return the tokens that stay, in the order of their rows, and the rows.

    The last row is the sum of the rest.
    """
    size = len(x)
    if keep == size:
        return list(range(size)), x
    low, high = np.percentile(attention, [25, 75])
    number = int((attention > high + 1.5 * (high - low)).sum())
    number = keep - 1 if variant == "fixed" else min(number, keep - 1)
    stays = np.argsort(-attention, kind="stable")[:number].tolist()
    room = keep - 1 - number
    if variant == "plus" and room:
        step = max(size // max(number, 1) // 3, -(-size // room), 1)
        stays += [i for i in range(0, size - 1, step) if i not in stays]
    unit = keys / np.linalg.norm(keys, axis=1, keepdims=True)
    rows = []
    for i in stays:
        others = [j for j in stays if j != i] + [j for j in range(size) if j not in stays]
        nearest = sorted(others, key=lambda j: -(unit[i] @ unit[j]))[:neighbours]
        rows.append(x[i] + sum((attention[j] * x[j] for j in nearest), np.zeros_like(x[i])))
    rest = [j for j in range(size) if j not in stays]
    rows.append(sum(attention[j] * x[j] for j in rest))
    return stays, np.array(rows)


def inputs(here, method, seed: int) -> dict[str, torch.Tensor]:
    """Attention with a long tail, as class tokens have it."""
    found = here.inputs(method, seed)
    name = method.taps(here.spec)[0]
    generator = torch.Generator().manual_seed(seed)
    found[name] = (2 * torch.randn(1, here.size, generator=generator)).softmax(-1)
    return found


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("variant", ["adaptive", "fixed", "plus"])
@pytest.mark.parametrize("neighbours", [32, 3, 0])
def test_rows_are_those_of_the_published_code(bench, grid, variant, neighbours):
    here = bench(grid)
    method = methods.load("prumerge", {"variant": variant, "neighbours": str(neighbours)})
    undecided = 0
    for seed, keep in enumerate([1, 2, 3, 7, 16, 29, here.size // 2, here.size - 1, here.size]):
        given = inputs(here, method, seed)
        x, attention, keys = (value[0].double().numpy() for value in given.values())
        stays, expected = published(x, attention, keys, keep, variant, neighbours)
        rows, kept, count, owner = (found[0] for found in here.reduce(method, given, keep))
        places = stays if keep == here.size else [*stays, -1]
        assert kept.tolist() == places + [-1] * (keep - len(places)) and int(count) == len(expected)
        np.testing.assert_allclose(rows[: len(expected)], expected, rtol=0, atol=1e-5)
        assert not rows[len(expected) :].any()
        assert owner[stays].tolist() == list(range(len(stays)))
        undecided += len(expected) < keep < here.size
    assert bool(undecided) == (variant != "fixed")


def test_a_token_belongs_to_the_most_similar_row_that_it_was_added_to(bench):
    here, method = bench(), methods.load("prumerge", {"variant": "fixed", "neighbours": "20"})
    given = inputs(here, method, 0)
    keys = [*given.values()][2][0].double().numpy()
    unit = keys / np.linalg.norm(keys, axis=1, keepdims=True)
    _, kept, count, owner = (found[0] for found in here.reduce(method, given, 5))
    stays = kept[:4].tolist()
    nearest = [sorted(set(range(here.size)) - {i}, key=lambda j: -(unit[i] @ unit[j]))[:20] for i in stays]
    for j in set(range(here.size)) - set(stays):
        rows = [row for row in range(4) if j in nearest[row]]
        best = max(rows, key=lambda row: unit[stays[row]] @ unit[j], default=int(count) - 1)
        assert owner[j] == best


def test_the_number_of_tokens_depends_on_the_image(bench):
    here, method = bench((24, 24)), methods.load("prumerge")
    counts = {int(here.reduce(method, inputs(here, method, seed), 288)[2]) for seed in range(8)}
    assert len(counts) > 3 and max(counts) < 288
    more = methods.load("prumerge", {"variant": "plus"})
    for seed in range(8):
        given = inputs(here, method, seed)
        few, many = (int(here.reduce(each, given, 575)[2]) - 1 for each in (method, more))
        assert 3 * few < many <= 5 * few  # about three samples for each outlier

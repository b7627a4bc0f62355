"""greedyprune against the greedy algorithm written out, pair by pair, in float64."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch

from foveate.export import methods


def greedy(hidden: np.ndarray, rows: list[int], keep: int, tau: float) -> tuple[list[int], float]:
    """The rows that stay, and how near the closest decision was."""
    direction = hidden / np.linalg.norm(hidden, axis=1, keepdims=True)
    saliency = {i: float(direction[i] @ direction[-1]) for i in rows}
    order = sorted(rows, key=lambda i: (-saliency[i], i))
    margin = min(saliency[a] - saliency[b] for a, b in pairwise(order))
    active, stays = list(order), []
    while active and len(stays) < keep:
        best = active.pop(0)
        stays.append(best)
        near = {i: float(direction[i] @ direction[best]) for i in active}
        margin = min([margin, *(abs(value - tau) for value in near.values())])
        active = [i for i in active if near[i] <= tau]
    stays += [i for i in order if i not in stays][: keep - len(stays)]
    return sorted(stays), margin


def crowded(feeds, groups: int):
    """Hidden states near ``groups`` directions, so that many are rivals."""
    generator = torch.Generator().manual_seed(groups)
    centres = torch.randn(groups, feeds["hidden"].shape[2], generator=generator)
    size = feeds["hidden"].shape[1]
    feeds["hidden"] = centres[torch.arange(size) * 7 % groups][None] + 0.3 * feeds["hidden"]
    return feeds


@pytest.mark.parametrize("tau", ["0.9", "0.5", "0.1", "-1"])
@pytest.mark.parametrize("layout", [(5, -64, 9), (3, -30, 4, -64, 6)], ids=str)
def test_equals_the_transcription(model, tau, layout):
    method = methods.load("greedyprune", {"tau": tau})
    here, compared, filled = model(method), 0, 0
    for seed, keep in enumerate((1, 2, 7, 16, 25, 30)):
        feeds = crowded(here.prompt(seed, keep, layout), 20)
        known = here.reference(feeds, 2)
        found = [greedy(known.hidden, rows, keep, method.tau) for rows in known.images]
        if min(margin for _, margin in found) < 1e-6:
            continue
        compared += 1
        left = here.left(feeds)
        assert [i for i in left if feeds["image"][0, i] >= 0] == [i for rows, _ in found for i in rows]
        filled += sum(keep > 20 for _ in found)
    assert compared >= 3 and filled


def test_rivals_leave_until_the_budget_needs_them(model):
    """Twelve directions: twelve tokens are one of each, whatever their saliency."""
    here = model(methods.load("greedyprune"))
    feeds = here.prompt(0, keep=12)
    kind = torch.arange(64) % 12
    feeds["hidden"][0, 5:69] = torch.randn(12, 128, generator=torch.Generator().manual_seed(1))[kind]
    left = [i - 5 for i in here.left(feeds) if 5 <= i < 69]
    assert left == list(range(12))
    feeds["keep"] = feeds["keep"].clamp(max=1) * 20
    assert set(range(12)) < {i - 5 for i in here.left(feeds)}


def test_order_and_length_of_tokens_do_not_matter(model):
    here = model(methods.load("greedyprune", {"tau": "0.2"}))
    feeds = crowded(here.prompt(2), 20)
    before = [i - 5 for i in here.left(feeds) if 5 <= i < 69]
    shuffle = torch.randperm(64, generator=torch.Generator().manual_seed(0))
    feeds["hidden"][0, 5:69] = 4 * feeds["hidden"][0, 5:69][shuffle]
    after = [i - 5 for i in here.left(feeds) if 5 <= i < 69]
    assert shuffle[after].sort().values.tolist() == before

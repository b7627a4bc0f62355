"""feather against its formulas in float64: attention without rotary embedding, the grid, the later cut."""

from __future__ import annotations

import numpy as np
import pytest

from foveate.export import methods, models


def unrotated(here, feeds, layer: int) -> tuple[np.ndarray, list[list[int]]]:
    """The score of every visual row: softmax over the rows of its image alone, mean over heads."""
    still = feeds | {"position_ids": feeds["position_ids"] * 0}  # a rotation by nothing
    known = here.reference(still, layer)
    scores = known.q[:, -1:] @ known.k.transpose(0, 2, 1) / np.sqrt(here.spec.head_dim)
    found = np.zeros(scores.shape[2])
    for rows in known.images:
        weight = np.exp(scores[:, 0, rows] - scores[:, 0, rows].max(-1, keepdims=True))
        found[rows] = (weight / weight.sum(-1, keepdims=True)).mean(0)
    return found, known.images


def best(score: np.ndarray, rows: list[int], number: int) -> set[int]:
    return set(sorted(rows, key=lambda i: -score[i])[:number])


@pytest.mark.parametrize("stride", [3, 2, 0])
@pytest.mark.parametrize("layout", [(5, -64, 9), (3, -64, 4, -64, 6)], ids=str)
def test_the_first_cut_keeps_the_best_and_the_grid(model, stride, layout):
    here = model(methods.load("feather", {"stride": str(stride)}))
    for seed, keep in enumerate((1, 10, 30)):
        feeds = here.prompt(seed, keep, layout)
        score, images = unrotated(here, feeds, 1)  # of 8 layers, before layer 2
        expected: set[int] = set()
        for rows in images:
            places = [(i, *divmod(i - rows[0], 8)) for i in rows]
            grid = {i for i, y, x in places if stride and y % stride == 0 and x % stride == 0}
            expected |= best(score, rows, keep) | grid
        assert {i for i in here.left(feeds) if feeds["image"][0, i] >= 0} == expected


@pytest.mark.parametrize(("keep", "rows"), [(1, 9), (19, 25), (32, 38)])
def test_the_second_cut_keeps_the_square_of_the_share(model, keep, rows):
    """floor(n rho^2) of n rows, and at least one; the grid is not protected any more."""
    here = model(methods.load("feather"))
    feeds = here.prompt(4, keep, (5, -rows, 9))
    feeds["entered"] = feeds["entered"].clamp(max=1) * 64  # n rows are left of 64
    score, (image,) = unrotated(here, feeds, 3)  # before layer 4
    number = max(1, int(rows * ((keep + 0.5) / 64) ** 2))
    assert {i for i in here.left(feeds, stage=1) if feeds["image"][0, i] >= 0} == best(score, image, number)


def test_positions_do_not_matter_unless_the_ablation_asks_for_them(model):
    for rope in ("false", "true"):
        here = model(methods.load("feather", {"rope": rope, "stride": "0"}))
        feeds = here.prompt(3)
        moved = feeds | {"position_ids": feeds["position_ids"] * 3}
        assert (here.left(feeds) == here.left(moved)) is (rope == "false")


def test_the_published_layers():
    """8 and 16 of 32 layers, in proportion for other depths."""
    method = methods.load("feather")
    spec = models.load("llava-1.5-7b", load_format="dummy").spec
    assert [cut.layer for cut in method.prune_layers(spec.decoder)] == [8, 16]
    spec = models.load("llava-1.5-13b", load_format="dummy").spec  # 40 layers
    assert [cut.layer for cut in method.prune_layers(spec.decoder)] == [10, 20]

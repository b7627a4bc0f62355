"""fastv against the last token's attention, computed in float64."""

from __future__ import annotations

import pytest

from foveate.export import methods


@pytest.mark.parametrize("options", [{}, {"layer": "5"}], ids=str)
@pytest.mark.parametrize("layout", [(5, -64, 9), (3, -30, 4, -64, 6)], ids=str)
def test_keeps_what_the_last_token_attends_to_most(model, options, layout):
    method = methods.load("fastv", options)
    here = model(method)
    for seed, keep in enumerate((1, 7, 16, 29)):
        feeds = here.prompt(seed, keep, layout)
        known = here.reference(feeds, method.layer - 1)
        score = known.attention[:, -1].mean(0)
        best = [sorted(sorted(rows, key=lambda i: -score[i])[:keep]) for rows in known.images]
        left = here.left(feeds)
        assert [i for i in left if known.image[i] >= 0] == [i for rows in best for i in rows]
        assert [i for i in left if known.image[i] < 0] == [i for i in range(len(score)) if known.image[i] < 0]


def test_without_rotary_embedding_the_positions_do_not_matter(model):
    """They matter with it, as in the published method."""
    for rope in ("false", "true"):
        here = model(methods.load("fastv", {"rope": rope}))
        feeds = here.prompt(3)
        moved = feeds | {"position_ids": feeds["position_ids"] * 3}
        assert (here.left(feeds) == here.left(moved)) is (rope == "false")


def test_position_ids_stay_those_of_the_whole_prompt():
    assert methods.load("fastv").position_mode == "keep"

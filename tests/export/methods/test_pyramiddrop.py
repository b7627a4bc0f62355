"""pyramiddrop against the last token's attention in float64, and its published schedule."""

from __future__ import annotations

import pytest

from foveate.export import methods, models
from foveate.runtime.llm.budget import stage_keep


@pytest.mark.parametrize("layout", [(5, -64, 9), (3, -30, 4, -64, 6)], ids=str)
def test_each_cut_keeps_what_the_last_token_attends_to_most(model, layout):
    """The attention is that of the layer after the cut, whose input is what is pruned."""
    here = model(methods.load("pyramiddrop", {"layers": "2,5"}))
    for stage, layer in enumerate((2, 5)):
        feeds = here.prompt(stage, 13, layout)
        known = here.reference(feeds | {"scored": feeds["hidden"]}, layer)
        score = known.attention[:, -1].mean(0)
        best = [sorted(sorted(rows, key=lambda i: -score[i])[:13]) for rows in known.images]
        left = here.left(feeds, stage)
        assert [i for i in left if known.image[i] >= 0] == [i for rows in best for i in rows]


def test_the_published_schedule():
    """Halves before layers 8, 16 and 24 of 32: 288, 144 and 72 of 576 tokens."""
    method, spec = methods.load("pyramiddrop"), models.load("llava-1.5-7b", load_format="dummy").spec
    assert [cut.layer for cut in method.prune_layers(spec.decoder)] == [8, 16, 24]
    budgets = method.budgets(spec)
    assert [stage_keep(budgets[f"pruner.{cut}"], 72, 576) for cut in range(3)] == [288, 144, 72]


def test_positions_are_renumbered():
    assert methods.load("pyramiddrop").position_mode == "compact"

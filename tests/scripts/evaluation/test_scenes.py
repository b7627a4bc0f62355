"""Questions of drawn scenes are numbered and chosen by kind."""

from __future__ import annotations

from evaluation.scenes import held_out
from foveate.calib.scenes.questions import HELD_OUT, KINDS


def test_questions_are_numbered_within_their_scene_and_chosen_by_kind():
    every = held_out(20, HELD_OUT, KINDS)
    assert [asked.seed for asked in every] == [HELD_OUT, HELD_OUT + 1, HELD_OUT + 2]
    assert [len(asked.questions) for asked in every] == [7, 7, 6]
    assert held_out(20, HELD_OUT, KINDS) is every  # drawn once
    some = held_out(9, HELD_OUT, ("count", "read"))
    assert sum(len(asked.questions) for asked in some) == 9
    whole = {(a.seed, i): q for a in held_out(200, HELD_OUT, KINDS) for i, q in a.questions}
    for asked in some:
        for index, question in asked.questions:
            assert question.kind in ("count", "read") and whole[asked.seed, index] == question

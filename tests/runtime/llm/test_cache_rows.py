"""The number of rows of a cache that an engine has from the start."""

from __future__ import annotations

from dataclasses import replace

import pytest

from foveate.jetson.planner import model_sizes
from foveate.runtime.llm.cache_rows import cache_rows, layer_row_bytes, rounded_up, told
from foveate.runtime.llm.generation import MAX_NEW_TOKENS

LLAVA = model_sizes.model("llava-1.5-7b", "sppruner").manifest


def test_the_default_has_room_for_the_largest_image_a_question_and_the_longest_answer() -> None:
    assert cache_rows(LLAVA) == rounded_up(576 + 40 + MAX_NEW_TOKENS) == 1024
    tiles = replace(LLAVA, num_visual_tokens=2880)
    assert cache_rows(tiles) == rounded_up(2880 + 40 + MAX_NEW_TOKENS) == 3328
    assert cache_rows(replace(LLAVA, num_visual_tokens=3840)) == 4096


def test_a_budget_that_is_fixed_needs_no_room_for_more() -> None:
    merging = replace(LLAVA, methods=(replace(LLAVA.method, fixed_keep=64),))
    assert cache_rows(merging) == rounded_up(64 + 40 + MAX_NEW_TOKENS) == 512
    tiles = replace(merging, num_visual_tokens=2880)  # 64 for each tile
    assert cache_rows(tiles) == 3328


@pytest.mark.parametrize(("asked", "rows"), [(1, 1), (1500, 1500), (4096, 4096), (9999, 4096)])
def test_the_users_number_is_taken_up_to_the_models_limit(asked: int, rows: int) -> None:
    assert LLAVA.decoder.max_positions == 4096
    assert cache_rows(LLAVA, asked) == rows


def test_what_it_costs_is_told() -> None:
    """Keys and values of 32 layers, 32 heads of 128 float16 numbers: 0.52 MB a row."""
    assert layer_row_bytes(LLAVA.decoder) == 2 * 32 * 128 * 2
    assert told(LLAVA, 1024).startswith("kv cache of 1024 rows: 537 MB.")
    assert "134.2 MB per 256 rows" in told(LLAVA, 1024)

from __future__ import annotations

import numpy as np
import pytest

from foveate.engines.errors import UserError
from foveate.runtime.bundle.manifest import MethodInfo
from foveate.runtime.llm.budget import resolve_keep

METHOD, NONE = MethodInfo("some", ()), MethodInfo("none", ())


@pytest.mark.parametrize(
    ("keep", "count"),
    [
        (128, 128),
        ("128", 128),
        (np.int64(7), 7),
        (1, 1),
        (576, 576),
        ("22.2%", 128),
        ("33.3%", 192),
        ("11.1%", 64),
        ("5.6%", 32),
        ("100%", 576),
        (" 50 % ", 288),
        ("0.001%", 1),
    ],
)
def test_counts_and_percentages(keep: int | str, count: int) -> None:
    assert resolve_keep(keep, 576, METHOD) == count


@pytest.mark.parametrize(
    "keep",
    [
        0,
        -1,
        577,
        "0",
        "-5",
        "577",
        "abc",
        "abc%",
        "%",
        "",
        "0%",
        "-1%",
        "100.1%",
        "nan%",
        "inf%",
        12.5,
        True,
        [3],
    ],
)
def test_a_keep_that_is_neither_count_nor_share_is_refused(keep: object) -> None:
    with pytest.raises(UserError) as error:
        resolve_keep(keep, 576, METHOD)
    assert error.value.code == 2
    assert repr(keep) in str(error.value)
    assert "1..576" in str(error.value)


def test_none_is_the_bundles_default() -> None:
    assert resolve_keep(None, 576, METHOD) == 128
    assert resolve_keep(None, 576, MethodInfo("some", (), {"keep": 64})) == 64
    assert resolve_keep(None, 576, MethodInfo("some", (), {"keep": "50%"})) == 288


def test_without_a_pruner_only_everything_is_taken() -> None:
    assert resolve_keep(None, 576, NONE) == 576
    assert resolve_keep(576, 576, NONE) == 576
    assert resolve_keep("100%", 576, NONE) == 576
    for keep in (128, "22.2%", 0, "abc%"):
        with pytest.raises(UserError):
            resolve_keep(keep, 576, NONE)


def test_a_budget_that_was_fixed_at_build_time_is_the_only_one() -> None:
    fixed = MethodInfo("some", (), {"keep": None}, fixed_keep=128)
    assert resolve_keep(None, 576, fixed) == resolve_keep(128, 576, fixed) == 128
    assert resolve_keep("22.2%", 576, fixed) == 128
    for keep in (127, "100%", "abc%"):
        with pytest.raises(UserError):
            resolve_keep(keep, 576, fixed)


def test_the_engine_may_take_less() -> None:
    assert resolve_keep(100, 576, METHOD, 100) == 100
    with pytest.raises(UserError, match="at most 100"):
        resolve_keep(101, 576, METHOD, 100)

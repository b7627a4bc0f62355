"""Options of methods: parsed by type, checked, and refused with the nearest name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import pytest

from foveate.engines.errors import UserError
from foveate.export import methods
from foveate.export.pruning.options import option, parse
from foveate.export.pruning.pre_llm import ScoringPruner


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

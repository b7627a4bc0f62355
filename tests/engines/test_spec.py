"""Interfaces of graphs."""

from __future__ import annotations

from foveate.engines.spec import GraphSpec, Symbol, TensorSpec

TOKENS, CACHE = Symbol("tokens", 1, 192, 4096), Symbol("cache", 1, 1024, 4096)
PAST = TensorSpec("past.0.key", "float16", (1, 2, CACHE, 8))
SEGMENT = GraphSpec(
    "llm",
    (
        TensorSpec("inputs_embeds", "float16", (1, TOKENS, 16)),
        TensorSpec("position_ids", "int64", (3, 1, TOKENS)),
        PAST,
    ),
    (TensorSpec("hidden", "float16", (1, TOKENS, 16)), TensorSpec("present.0.key", "float16", PAST.shape)),
    (("present.0.key", "past.0.key"),),
)


def test_rows_are_bounded_wherever_they_are_a_dimension() -> None:
    bounded = SEGMENT.with_most_rows(100)
    rows = Symbol("tokens", 1, 100, 100)
    assert bounded.rows == rows and bounded.most_rows == 100
    assert bounded.input("position_ids").shape == (3, 1, rows)
    assert bounded.output("hidden").shape == (1, rows, 16)
    assert bounded.input("past.0.key") == PAST
    assert SEGMENT.appending().with_most_rows(100).output("present.0.key").shape == (1, 2, rows, 8)


def test_a_larger_bound_changes_nothing() -> None:
    assert SEGMENT.with_most_rows(8192) == SEGMENT

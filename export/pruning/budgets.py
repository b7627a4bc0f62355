"""Budgets: how the user's ``keep`` becomes the number of tokens of each stage, and upper bounds for it.

A stage is a graph that prunes: ``pruner`` before the language model, ``pruner.<i>`` inside it. Its budget is
given by points, which ``bundle.json`` holds and ``runtime/llm/budget.py`` reads.
"""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["SMALLEST_SHARE", "Points", "sampled"]

Points = tuple[tuple[float, float], ...]
"""Pairs (share of the image's tokens that the user asks for, share that the stage is given).

Points are joined by straight lines in logarithms."""

SMALLEST_SHARE = 2.0**-20
"""Share of the lowest point of a budget: smaller than one token of any image."""


def sampled(total: int, count: Callable[[int], dict[str, int]]) -> dict[str, Points]:
    """Sample points at up to 33 budgets from 1 to ``total``, evenly spaced in logarithms.

    ``count`` returns the number of tokens that each stage is given for a budget.
    """
    asked = sorted({round(total ** (i / 32)) for i in range(33)})
    rows = [count(keep) for keep in asked]
    return {
        stage: tuple((keep / total, row[stage] / total) for keep, row in zip(asked, rows, strict=True))
        for stage in rows[0]
    }

"""The methods of which every test run builds bundles. Bundles of others are slow, for ``make matrix``."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import pytest

METHODS = (
    "none",
    "sppruner",  # pre-LLM, reads the question
    "visionzip",  # pre-LLM, merges, before the projector
    "ocvtp",  # pre-LLM, with a trained network
    "tome",  # merges in the encoder
    "fastv",  # in-LLM
    "star",  # pre-LLM and in-LLM
)


def often(cases: Iterable[Any], chosen: Collection[str] = METHODS) -> list[Any]:
    """Return ``cases`` as the parameters of a test: all but the ``chosen`` are slow.

    A case is a name, or a tuple that begins with one.
    """
    return [_parameter(case, case if isinstance(case, str) else case[0], chosen) for case in cases]


def _parameter(case: Any, name: str, chosen: Collection[str]) -> Any:
    values = (case,) if isinstance(case, str) else case
    return pytest.param(*values, marks=() if name in chosen else pytest.mark.slow)

"""Workarounds: how to avoid a known fault of an engine's version.

Each backend has a table of them. They are tried in its order when a graph is refused or the self-test fails.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

__all__ = ["Workaround", "applicable"]


@dataclass(frozen=True)
class Workaround:
    """A workaround for ``targets`` whose version is at least ``since`` and below ``until``.

    It gives either ``flags`` or ``options`` for the graph that fails or answers wrongly, or another
    ``dialect`` for all graphs. If none is known, ``advice`` says what the user can do, where an error message
    has the ``sign``.
    """

    name: str
    source: str
    targets: tuple[str, ...]
    since: tuple[int, ...] = (0,)
    until: tuple[int, ...] = (999,)
    flags: str | None = None
    options: Mapping[str, int | str | bool] = field(default_factory=dict)
    dialect: str | None = None
    sign: str | None = None
    advice: str | None = None


def applicable(known: Iterable[Workaround], target: str, version: str) -> tuple[Workaround, ...]:
    """Return those of ``known`` that are for this ``version`` of ``target``, in their order."""
    numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
    return tuple(each for each in known if target in each.targets and each.since <= numbers < each.until)

"""Dialects: forms of the graphs, one for each kind of engine."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import onnx_ir as ir

from foveate.engines.spec import GraphSpec

__all__ = ["Dialect", "Passes"]

Passes = Callable[[GraphSpec], Sequence[ir.passes.PassBase]]


@dataclass(frozen=True)
class Dialect:
    """The form of the graphs of one kind of engine: ``DIALECT`` in a module of this package."""

    dtypes: Mapping[str, str]
    """The compute dtype by precision. Other precisions are refused."""

    passes: Passes
    """Return the rewrites of a canonical graph: opset 24, native operators, explicit mask."""

    dynamic: bool
    """True if the range of each row of an activation is found at run time, False if ranges are calibrated."""

    zero_points: bool
    """True if int4 weights may have zero points."""

    appends: bool
    """True if graphs return only the new rows of their kv caches, and the engine appends them."""

    largest_sort: int | None
    """Largest count of numbers that its engines can sort; None for any."""

    refuses: Mapping[str, str] = field(default_factory=dict)
    """The reason by refused precision."""

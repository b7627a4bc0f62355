"""``keep``: how many visual tokens of an image stay. Turns a count or a percentage into a count."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, SupportsIndex

from foveate.engines.errors import UserError
from foveate.runtime.bundle.manifest import MethodInfo

__all__ = ["DEFAULT", "Keep", "Points", "resolve_keep", "stage_keep"]

Keep = int | str | None
"""A count (128, "128"), a percentage of the image's visual tokens ("22.2%"), or None for the bundle's
default."""

DEFAULT = "22.2%"

Points = Sequence[Sequence[float]]
"""Pairs (share of an image's tokens that the user keeps, share that the stage keeps), ascending. Empty: both
equal."""


def resolve_keep(keep: Keep, total: int, method: MethodInfo, largest: int | None = None) -> int:
    """Return the count in 1..``total`` that ``keep`` asks for.

    A percentage is rounded to the nearest count, at least 1. ``method`` is the manifest's; its option
    ``keep`` is the default. ``largest`` is the engine's own limit. Raises UserError if ``keep`` is out of
    range, if the budget was fixed when the bundle was built (``fixed_keep``) and ``keep`` is another one, or
    if the bundle has no pruner and ``keep`` is not everything.
    """
    if not method.prunes:
        if keep is not None and _count(keep, total) != total:
            raise UserError(
                f"this bundle prunes nothing (method none) "
                f"| got keep {keep}, it always keeps all {total} tokens "
                "| leave keep out, or build the bundle with a method",
                code=2,
            )
        return total
    if (fixed := method.fixed_keep) is not None:
        if keep is not None and _count(keep, total) != fixed:
            raise UserError(
                f"the budget of {method.name} is fixed when a bundle is built "
                f"| got keep {keep}, this one always keeps {fixed} of {total} tokens "
                "| leave keep out, or build with --set keep=...",
                code=2,
            )
        return fixed
    count = _count(_default(method) if keep is None else keep, total)
    if largest is not None and count > largest:
        raise UserError(
            f"keep is too large for this engine | got {count}, expected at most {largest}", code=2
        )
    return count


def stage_keep(points: Points, keep: int, total: int) -> int:
    """Return the budget of a stage, 1..``total``, if the user keeps ``keep`` of ``total`` tokens.

    0 for 0 of 0.

    Between two ``points`` the logarithm of the stage's share is linear in the logarithm of the user's share.
    Outside of the points the nearest line is continued.
    """
    if not points or not total:
        return keep
    asked = math.log(keep / total)
    logs = [(math.log(k), math.log(v)) for k, v in points]
    (k0, v0), (k1, v1) = next((pair for pair in pairwise(logs) if asked <= pair[1][0]), (logs[-2], logs[-1]))
    share = v0 + (asked - k0) * (v1 - v0) / (k1 - k0)
    return min(max(1, math.floor(math.exp(min(share, 0.0)) * total + 0.5 + 1e-9)), total)


def _default(method: MethodInfo) -> int | str:
    keep = method.options.get("keep")
    return keep if isinstance(keep, (int, str)) and keep else DEFAULT


def _count(keep: int | str, total: int) -> int:
    if isinstance(keep, str) and keep.strip().endswith("%"):
        share = _number(float, keep.strip()[:-1])
        if share is None or not 0 < share <= 100:
            raise _wrong(keep, total)
        return max(1, math.floor(total * share / 100 + 0.5))
    count = _number(int, keep) if isinstance(keep, str) else _index(keep)
    if count is None or not 1 <= count <= total:
        raise _wrong(keep, total)
    return count


def _number(kind: type, text: str) -> Any:
    try:
        return kind(text)
    except ValueError:
        return None


def _index(keep: object) -> int | None:
    """Return a whole number of Python's or NumPy's, None for anything else."""
    if isinstance(keep, bool) or not isinstance(keep, SupportsIndex):
        return None
    try:
        return operator.index(keep)
    except TypeError:  # an array of several numbers
        return None


def _wrong(keep: object, total: int) -> UserError:
    return UserError(
        f"wrong keep | got {keep!r}, expected a count 1..{total} or a percentage above 0% up to 100% "
        '| for example 128 or "22.2%"',
        code=2,
    )

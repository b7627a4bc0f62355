"""Options of methods: fields of a dataclass, parsed from text by their types and checked against ranges."""

from __future__ import annotations

import dataclasses
import types
import typing
from typing import Any, Literal

from foveate.engines.errors import UserError

__all__ = ["check", "option", "parse"]


def option(default: Any, low: float | None = None, high: float | None = None) -> Any:
    """Return a dataclass field with a default and the range of its values, bounds included.

    It takes and returns values of any type, as ``dataclasses.field`` does.
    """
    return dataclasses.field(default=default, metadata={"low": low, "high": high})


def parse(method: str, key: str, text: str, kind: Any) -> Any:
    """Parse ``text`` as a value of the option's type ``kind``.

    Types are bool, int, float, str, a Literal, ``X | None`` and tuples of these. Raises UserError (code 2)
    for text that is no number where one is wanted; other bad values come back as text for ``check`` to
    refuse.
    """
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        rest = [a for a in args if a is not type(None)]
        return None if text.lower() == "none" else parse(method, key, text, rest[0])
    if origin is tuple:
        parts = [part.strip() for part in text.strip("()").split(",") if part.strip()]
        return tuple(parse(method, key, part, args[0]) for part in parts)
    if origin is Literal:
        return next((choice for choice in args if str(choice) == text), text)
    if kind is bool:
        return {"true": True, "1": True, "false": False, "0": False}.get(text.lower(), text)
    try:
        return kind(text)
    except ValueError:
        raise _misfit(method, key, text, kind, None) from None


def check(method: str, field: dataclasses.Field[Any], kind: Any, value: Any) -> None:
    """Raise UserError (code 2) if ``value`` is not of the type ``kind`` or outside of the field's range."""
    bounds = (field.metadata.get("low"), field.metadata.get("high"))
    if not _fits(kind, value, bounds):
        raise _misfit(method, field.name, value, kind, bounds)


def _fits(kind: Any, value: Any, bounds: tuple[float | None, float | None]) -> bool:
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(arg, value, bounds) for arg in args)
    if origin is tuple:
        return isinstance(value, tuple) and all(_fits(args[0], item, bounds) for item in value)
    if origin is Literal:
        return any(value == choice and type(value) is type(choice) for choice in args)
    if kind is float and type(value) is int:
        kind = int
    if type(value) is not kind:
        return False
    if kind not in (int, float):
        return True
    low, high = bounds
    return (low is None or value >= low) and (high is None or value <= high) and abs(value) < float("inf")


def _misfit(
    method: str, key: str, value: Any, kind: Any, bounds: tuple[float | None, float | None] | None
) -> UserError:
    low, high = bounds or (None, None)
    if typing.get_origin(kind) is Literal:
        wanted = "one of " + ", ".join(str(choice) for choice in typing.get_args(kind))
    else:
        wanted = kind.__name__ if isinstance(kind, type) else str(kind)
        if low is not None or high is not None:
            wanted += f" in {'' if low is None else low}..{'' if high is None else high}"
    return UserError(
        f"{method}: bad value for {key} | got {value}, expected {wanted} | --set {key}=...", code=2
    )

"""Read and write dataclasses as JSON, strictly: a wrong type or a missing key is an error that names the key.

The types of a dataclass's fields say what is expected: ``str``, ``int``, ``float``, ``bool``, ``object`` (any
JSON value), ``Literal``, ``tuple``, ``dict[str, ...]``, other dataclasses, and unions of these. Of several
dataclasses the one is taken whose ``kind: Literal[...]`` is that of the object.

A field with ``checked`` in its metadata is checked against that type and kept as it is in JSON.

A key may be absent if its field has a default. Keys that no field has are left out: what a reader must not
leave out is announced in ``requires`` of bundle.json.
"""

from __future__ import annotations

import types
from dataclasses import MISSING, Field, fields, is_dataclass
from functools import cache
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

__all__ = ["MisfitError", "default_of", "field_types", "is_union", "read", "write"]

T = TypeVar("T")

_WORDS: dict[Any, str] = {
    str: "a text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    type(None): "null",
    dict: "an object",
    tuple: "a list",
}


class MisfitError(ValueError):
    """A key that is missing, or whose value has another type than expected. Its text names the key."""


def read(kind: type[T], value: object, at: str = "") -> T:
    """Return a JSON ``value`` as a ``kind``. ``at`` is the key of the value, for messages.

    Raises MisfitError for the first key that does not fit.
    """
    return _read(kind, value, at)


def write(value: object) -> Any:
    """Return a value that ``read`` reads, as JSON. Fields that have their default are left out."""
    if is_dataclass(value):
        given = {each: getattr(value, each.name) for each in fields(value)}
        return {
            each.name: write(got)
            for each, got in given.items()
            if each.metadata.get("always") or got != default_of(each)
        }
    if isinstance(value, dict):
        return {key: write(each) for key, each in value.items()}
    return [write(each) for each in value] if isinstance(value, (tuple, list)) else value


def default_of(field: Field[Any]) -> Any:
    """Return the default of a dataclass's field, or ``dataclasses.MISSING``."""
    return field.default if field.default_factory is MISSING else field.default_factory()


@cache
def field_types(kind: type) -> dict[str, tuple[Field[Any], Any]]:
    """Return the fields of a dataclass by name, each with its type."""
    hints = get_type_hints(kind)
    return {each.name: (each, hints[each.name]) for each in fields(kind)}


def is_union(kind: Any) -> bool:
    """Return whether a type is a union, in either way of writing it."""
    return get_origin(kind) in (Union, types.UnionType)


# The types are values here, which typing has no name for: hence Any in the functions below.
def _read(kind: Any, value: Any, at: str) -> Any:
    origin, inner = get_origin(kind), get_args(kind)
    if is_union(kind):
        return _read(_chosen(inner, value, at), value, at)
    if origin is Literal:
        if not any(value == each and type(value) is type(each) for each in inner):
            raise _misfit(at, value, kind)
        return value
    if origin is tuple:
        return _read_list(inner, value, at)
    if origin is dict:
        return {key: _read(inner[1], each, _under(at, key)) for key, each in _object(value, at).items()}
    if is_dataclass(kind):
        return _read_object(kind, _object(value, at), at)
    if kind is object:
        return value
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:
        raise _misfit(at, value, kind)
    return value


def _read_list(inner: tuple[Any, ...], value: Any, at: str) -> tuple[Any, ...]:
    if not isinstance(value, (list, tuple)):
        raise _misfit(at, value, tuple)
    kinds = [inner[0]] * len(value) if inner[-1] is Ellipsis else list(inner)
    if len(kinds) != len(value):
        raise MisfitError(f"{at} has {len(value)} items, expected {len(kinds)}")
    pairs = enumerate(zip(kinds, value, strict=True))
    return tuple(_read(kind, each, f"{at}[{number}]") for number, (kind, each) in pairs)


def _read_object(kind: Any, data: dict[str, Any], at: str) -> Any:
    values = {}
    for name, (field, expected) in field_types(kind).items():
        if name in data and "checked" in field.metadata:
            _read(field.metadata["checked"], data[name], _under(at, name))
            values[name] = data[name]
        elif name in data:
            values[name] = _read(expected, data[name], _under(at, name))
        elif default_of(field) is MISSING:
            raise MisfitError(f"{_under(at, name)} is missing, expected {_words(expected)}")
    try:
        return kind(**values)
    except MisfitError:
        raise
    except ValueError as error:  # a value that its own class refuses
        raise MisfitError(f"{at}: {error}") from error


def _object(value: Any, at: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _misfit(at or "the whole file", value, dict)
    return value


def _chosen(choices: tuple[Any, ...], value: Any, at: str) -> Any:
    """Return the type among ``choices`` that the value is of, judged from outside."""
    fitting = [each for each in choices if _outline(each, value)]
    if len(fitting) > 1 and isinstance(value, dict):
        kinds = {name: each for each in fitting for name in get_args(field_types(each)["kind"][1])}
        found = value.get("kind")
        if not isinstance(found, str) or found not in kinds:
            raise _misfit(_under(at, "kind"), found, Literal[tuple(kinds)])
        return kinds[found]
    if not fitting:
        raise MisfitError(f"{at} is {_short(value)}, expected {' or '.join(map(_words, choices))}")
    return fitting[0]


def _outline(kind: Any, value: Any) -> bool:
    if get_origin(kind) is Literal:
        return value in get_args(kind)
    if is_dataclass(kind) or get_origin(kind) is dict:
        return isinstance(value, dict)
    if get_origin(kind) is tuple:
        return isinstance(value, (list, tuple))
    return type(value) is kind or (kind is float and type(value) is int)


def _under(at: str, key: str) -> str:
    return f"{at}.{key}" if at else key


def _misfit(at: str, value: object, kind: Any) -> MisfitError:
    return MisfitError(f"{at} is {_short(value)}, expected {_words(kind)}")


def _words(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return " or ".join(map(repr, get_args(kind)))
    if is_union(kind):
        return " or ".join(map(_words, get_args(kind)))
    if is_dataclass(kind):
        return _WORDS[dict]
    return _WORDS.get(get_origin(kind) or kind, "a value")


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:40]} ..."

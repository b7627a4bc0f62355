"""Pruning methods: one file each, found by name. In: a method's name and its options as text; out: a
``Method``.

A file ``<name>.py`` in this folder with a frozen dataclass ``Method`` (see ``base``, and
``export/pruning/in_llm.py`` for those inside the language model) is a method; nothing else is to be registered
anywhere. ``a+b`` is a pair of them.
"""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from foveate.engines import errors

if TYPE_CHECKING:
    from foveate.export.pruning import method as base
    from foveate.export.pruning.combined import Pair

__all__ = ["describe", "load", "names", "require"]


def names() -> list[str]:
    """The names of all methods, sorted."""
    return sorted(m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_"))


def require(name: str) -> None:
    """Raise UserError (code 2) where ``name`` is no method and no pair of them. Imports none of them, nor
    torch."""
    both = name.split("+")
    if len(both) > 2:
        raise errors.UserError(
            f"{name} names {len(both)} methods | expected one or a pair, such as vscan+pyramiddrop "
            "| leave the others out",
            code=2,
        )
    known = names()
    for each in both:
        if each not in known:
            raise errors.unknown("method", each, known)


def load(name: str, options: Mapping[str, str] | None = None) -> base.Method | Pair:
    """The method ``name`` with ``options`` (``--set key=value``, values as text) parsed by each field's type.

    Raises UserError (code 2) for an unknown method or option and for a value that does not fit.
    """
    from foveate.export.pruning import method as base  # torch comes with it

    require(name)
    options = options or {}
    if "+" in name:
        return _pair(name, options)
    method = _class(name)
    types = method.options()
    for key in options:
        if key not in types:
            raise errors.unknown(f"option of {name}", key, types)
    return method(**{key: base.parse(name, key, text, types[key]) for key, text in options.items()})


def _class(name: str) -> type[base.Method]:
    return importlib.import_module(f"{__name__}.{name}").Method


def _pair(name: str, options: Mapping[str, str]) -> Pair:
    from foveate.export.pruning.combined import Pair  # it imports this package

    both = tuple(name.split("+"))
    given = Pair.sort(both, tuple(_class(each).options() for each in both), options)
    return Pair(*(load(each, given[each]) for each in both), **given["pair"])


def describe(method: base.Method | Pair) -> dict[str, Any]:
    """Every option and its value, as JSON can hold it: what ``bundle.json`` records."""
    from foveate.export.pruning import method as base

    if not isinstance(method, base.Method):
        both = {each.name: describe(each) for each in (method.before, method.inside)}
        flat = {f"{name}.{key}": value for name, options in both.items() for key, value in options.items()}
        return {key: getattr(method, key) for key in method.SHARES} | flat
    return {key: list(v) if isinstance(v, tuple) else v for key, v in dataclasses.asdict(method).items()}

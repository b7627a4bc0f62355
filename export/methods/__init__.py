"""Pruning methods, one file each. ``load`` makes a ``Method`` of a method's name and its options as text.

A file ``<name>.py`` in this folder that has a frozen dataclass ``Method`` is a method. It needs no
registration. The base classes are in ``export/pruning/method.py`` and, for in-LLM pruners,
``export/pruning/in_llm.py``. ``a+b`` names a pair of methods.
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
    """Return the names of all methods, sorted."""
    return sorted(m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_"))


def require(name: str) -> None:
    """Raise UserError (code 2) unless ``name`` is a method or a pair. Imports neither a method nor torch."""
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
    """Return the method ``name`` with ``options`` (``--set key=value``), parsed by the types of its fields.

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
    """Return every option with its value in the form that ``bundle.json`` records."""
    from foveate.export.pruning import method as base

    if not isinstance(method, base.Method):
        both = {each.name: describe(each) for each in (method.before, method.inside)}
        flat = {f"{name}.{key}": value for name, options in both.items() for key, value in options.items()}
        return {key: getattr(method, key) for key in method.SHARES} | flat
    return {key: list(v) if isinstance(v, tuple) else v for key, v in dataclasses.asdict(method).items()}

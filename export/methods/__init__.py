"""Pruning methods, one file each. ``load`` makes a ``Method`` of a method's name and its options as text.

A file ``<name>.py`` in this folder that has a frozen dataclass ``Method`` is a method. It needs no
registration. The base classes are in ``export/pruning``. ``a+b`` names a combination of two methods.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from typing import TYPE_CHECKING

from foveate.engines import errors

if TYPE_CHECKING:
    from foveate.export.pruning.combined import CombinedMethod
    from foveate.export.pruning.method import Method, SingleMethod

__all__ = ["load", "names", "require"]


def names() -> list[str]:
    """Return the names of all methods, sorted."""
    return sorted(m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_"))


def require(name: str) -> None:
    """Raise UserError (code 2) unless ``name`` is a method or two of them.

    Imports neither a method nor torch.
    """
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


def load(name: str, options: Mapping[str, str] | None = None) -> Method:
    """Return the method ``name`` with ``options`` (``--set key=value``), parsed by the types of its fields.

    Raises UserError (code 2) for an unknown method or option and for a value that does not fit.
    """
    require(name)
    return _combined(name, options or {}) if "+" in name else _single(name, options or {})


def _single(name: str, options: Mapping[str, str]) -> SingleMethod:
    from foveate.export.pruning.options import parse

    method = _class(name)
    types = method.options()
    for key in options:
        if key not in types:
            raise errors.unknown(f"option of {name}", key, types)
    return method(**{key: parse(name, key, text, types[key]) for key, text in options.items()})


def _class(name: str) -> type[SingleMethod]:
    found: type[SingleMethod] = importlib.import_module(f"{__name__}.{name}").Method
    return found


def _combined(name: str, options: Mapping[str, str]) -> CombinedMethod:
    from foveate.export.pruning.combined import CombinedMethod, sorted_options

    first, second = name.split("+")
    given = sorted_options((first, second), (_class(first).options(), _class(second).options()), options)
    return CombinedMethod(_single(first, given.first), _single(second, given.second), **given.shares)

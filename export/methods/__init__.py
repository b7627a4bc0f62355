"""Pruning methods: one file each, found by name. In: a method's name and its options as text; out: a ``Method``.

A file ``<name>.py`` in this folder with a frozen dataclass ``Method`` (see ``base``) is a method; nothing else
is to be registered anywhere.
"""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
from collections.abc import Mapping
from typing import Any

from foveate.engines import errors
from foveate.export.methods import base

__all__ = ["describe", "load", "names"]


def names() -> list[str]:
    """The names of all methods, sorted."""
    return sorted(m.name for m in pkgutil.iter_modules(__path__) if m.name not in ("base",))


def load(name: str, options: Mapping[str, str] | None = None) -> base.Method:
    """The method ``name`` with ``options`` (``--set key=value``, values as text) parsed by each field's type.

    Raises UserError (code 2) for an unknown method or option and for a value that does not fit.
    """
    known = names()
    if name not in known:
        raise errors.unknown("method", name, known)
    method = importlib.import_module(f"{__name__}.{name}").Method
    types = method.options()
    for key in options or {}:
        if key not in types:
            raise errors.unknown(f"option of {name}", key, types)
    return method(**{key: base.parse(name, key, text, types[key]) for key, text in (options or {}).items()})


def describe(method: base.Method) -> dict[str, Any]:
    """Every option and its value, as JSON can hold it: what ``bundle.json`` records."""
    return {key: list(v) if isinstance(v, tuple) else v for key, v in dataclasses.asdict(method).items()}

"""All targets of all backends, found by their folders."""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
from collections.abc import Collection, Iterator
from typing import Any

import foveate.engines
from foveate.engines.backend import Backend, Options, Target
from foveate.engines.errors import UserError, unknown

__all__ = ["TARGETS", "backend", "options_of", "usable"]


def _found() -> Iterator[Target]:
    """Yield the targets of every sub-package of ``engines`` that has a module ``target``."""
    for package in pkgutil.iter_modules(foveate.engines.__path__, "foveate.engines."):
        if package.ispkg and importlib.util.find_spec(f"{package.name}.target"):
            yield from importlib.import_module(f"{package.name}.target").TARGETS


TARGETS: dict[str, Target] = {target.name: target for target in sorted(_found(), key=lambda t: t.rank)}
"""Targets by name, in the order in which they are preferred."""


def backend(target: str) -> Backend:
    """Return the backend of a target.

    Raises UserError if the target is unknown or its library is not installed.
    """
    known = _known(target)
    library = known.libraries[0]
    try:
        return known.make()
    except ModuleNotFoundError as error:
        if error.name != library:
            raise
        raise UserError(
            f"the target {target} needs {library} | it is not installed | {known.install}"
        ) from error


def options_of(target: str, given: Options) -> dict[str, Any]:
    """Return the options of ``target``, with defaults for those that are None.

    Raises UserError for an unknown target, an option that the target does not have, and a wrong value. The
    target's library need not be installed.
    """
    return _known(target).settled(given)


def usable(dialects: Collection[str]) -> list[str]:
    """Return the targets that this machine can compile for and run.

    ``dialects`` are those of the bundle.
    """
    found = []
    for target in TARGETS:
        try:
            made = backend(target)
        except (UserError, ImportError):  # the target's library is not installed, or cannot be loaded
            continue
        if made.cannot_run() is None and not set(made.dialects).isdisjoint(dialects):
            found.append(target)
    return found


def _known(target: str) -> Target:
    if target not in TARGETS:
        raise unknown("target", target, TARGETS)
    return TARGETS[target]

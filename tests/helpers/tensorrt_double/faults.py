"""Faults that a test asks for."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any


def checked(method: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate a method of an object with a ``binding``: a fault of its name takes its place."""

    @functools.wraps(method)
    def call(self: Any, *arguments: Any, **named: Any) -> Any:
        if self.binding.faulty(method.__name__):
            return self.binding.faults.pop(method.__name__)
        return method(self, *arguments, **named)

    return call

"""Quantization schemes, one file each: ``fp8``, ``int4``, ``int8``.

* ``scheme``: the class that a scheme implements.
* ``quantized``: quantized matrices, and the parts of them that are stored.
* ``graph_site``: the place of a weight in a graph.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from foveate.engines.errors import unknown

if TYPE_CHECKING:
    from foveate.calib.schemes.scheme import Scheme

__all__ = ["load", "names"]

_NAMES = ("fp8", "int4", "int8")


def names() -> list[str]:
    """Return the names of all schemes. Imports none of them."""
    return list(_NAMES)


def load(name: str) -> Scheme:
    """Return the scheme ``name``. Raises UserError for an unknown name."""
    if name not in _NAMES:
        raise unknown("quantization scheme", name, _NAMES)
    scheme: Scheme = importlib.import_module(f"{__name__}.{name}").SCHEME
    return scheme

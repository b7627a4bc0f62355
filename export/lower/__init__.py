"""Dialects: what each engine is given. A dialect is a module here with ``DTYPES`` and ``passes(spec)``.

``DTYPES`` maps a precision to the graph's compute dtype; ``passes`` is the list that turns the canonical graph
(opset 24, native operators, explicit mask) into the dialect's form.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import onnx_ir as ir

from foveate.engines.errors import unknown
from foveate.engines.spec import GraphSpec

__all__ = ["dialect", "lower", "names"]


def names() -> list[str]:
    return sorted(path.stem for path in Path(__file__).parent.glob("[!_]*.py") if path.stem != "passes")


def dialect(name: str) -> ModuleType:
    if name not in names():
        raise unknown("dialect", name, names())
    return importlib.import_module(f"{__name__}.{name}")


def lower(model: ir.Model, spec: GraphSpec, name: str) -> ir.Model:
    """A copy of ``model`` in the dialect ``name``."""
    model = model.clone()
    for rewrite in dialect(name).passes(spec):
        rewrite(model)
    return model

"""Dialects, the forms of a graph for different engines. A dialect is a module of this package::

DTYPES: dict[str, str]      # compute dtype by precision; other precisions are refused
REFUSES: dict[str, str]     # reason by refused precision
DYNAMIC: bool               # ranges of activations are found at run time, else they are calibrated
ZERO_POINTS: bool           # int4 weights may have zero points
LARGEST_SORT: int | None    # how many numbers its engines can sort; None: any
passes(spec)                # rewrites of the canonical graph (opset 24, native operators, explicit mask)
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from foveate.engines.errors import unknown
from foveate.engines.spec import GraphSpec

if TYPE_CHECKING:
    import onnx_ir as ir

    from foveate.calib.schemes.scheme import Form

__all__ = ["dialect", "form", "lower", "names", "require"]


def names() -> list[str]:
    return sorted(
        path.stem for path in Path(__file__).parent.glob("[!_]*.py") if not path.stem.endswith("passes")
    )


def require(given: Iterable[str]) -> None:
    """Raise UserError (code 2) for a name that is no dialect. Imports no dialect."""
    for name in given:
        if name not in names():
            raise unknown("dialect", name, names())


def dialect(name: str) -> ModuleType:
    require([name])
    return importlib.import_module(f"{__name__}.{name}")


def form(name: str, precision: str) -> Form:
    """Return the form of the weights of a decoder in ``precision`` in the dialect ``name``."""
    from foveate.calib.schemes.scheme import Form  # this imports ONNX

    module = dialect(name)
    return Form(module.DTYPES[precision], module.DYNAMIC, module.ZERO_POINTS)


def lower(model: ir.Model, spec: GraphSpec, name: str, *, widened: bool = False) -> ir.Model:
    """Return a copy of ``model`` in the dialect ``name``.

    ``widened``: the model was traced in float32, but its inputs and outputs become float16.
    """
    from onnx_ir.passes import common

    from foveate.export.lowering.common_passes import Float16Edges

    model = model.clone()
    if widened:
        Float16Edges(spec)(model)
    # ONNX requires unique names, in subgraphs as well. Constants are moved out of loops, because ONNX Runtime
    # 1.23.2 writes those of a subgraph twice into its optimized model, and then refuses that model.
    tidy = (common.LiftSubgraphInitializersToMainGraphPass(), common.NameFixPass())
    for rewrite in (*dialect(name).passes(spec), *tidy):
        rewrite(model)
    return model

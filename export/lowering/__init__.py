"""Dialects, the forms of a graph for different engines: ``native``, ``ort``, ``primitive``.

* ``dialect``: what a dialect is.
* ``common_passes``, ``primitive_passes``: rewrites of graphs. ``rewriting``: rewrites of single nodes.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from typing import TYPE_CHECKING

from foveate.engines.errors import unknown
from foveate.engines.spec import GraphSpec

if TYPE_CHECKING:
    import onnx_ir as ir

    from foveate.calib.schemes.quantized import Form
    from foveate.export.lowering.dialect import Dialect

__all__ = ["form", "load", "lower", "names", "require"]


_NAMES = ("native", "ort", "primitive")


def names() -> list[str]:
    """Return the names of all dialects. Imports none of them."""
    return list(_NAMES)


def require(given: Iterable[str]) -> None:
    """Raise UserError (code 2) for a name that is no dialect. Imports no dialect."""
    for name in given:
        if name not in _NAMES:
            raise unknown("dialect", name, _NAMES)


def load(name: str) -> Dialect:
    """Return the dialect ``name``. Raises UserError (code 2) for an unknown name."""
    require([name])
    found: Dialect = importlib.import_module(f"{__name__}.{name}").DIALECT
    return found


def form(name: str, precision: str) -> Form:
    """Return the form of the weights of a decoder in ``precision`` in the dialect ``name``."""
    from foveate.calib.schemes.quantized import Form  # this imports ONNX

    found = load(name)
    return Form(found.dtypes[precision], found.dynamic, found.zero_points)


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
    for rewrite in (*load(name).passes(spec), *tidy):
        rewrite(model)
    return model

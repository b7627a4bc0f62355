"""Dialects: what each engine is given. A dialect is a module here::

DTYPES: dict[str, str]      # precision -> the graph's compute dtype; a precision that is missing is refused
REFUSES: dict[str, str]     # missing precision -> why
DYNAMIC: bool               # activations are quantized with ranges found at run time, else with calibrated ones
ZERO_POINTS: bool           # int4 weights may have zero points
LARGEST_SORT: int | None    # the most numbers that its engines sort; None: any
passes(spec)                # the rewrites from the canonical graph (opset 24, native operators, explicit mask)
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
    """Raise UserError (code 2) for a name that is no dialect's. Imports none of them."""
    for name in given:
        if name not in names():
            raise unknown("dialect", name, names())


def dialect(name: str) -> ModuleType:
    require([name])
    return importlib.import_module(f"{__name__}.{name}")


def form(name: str, precision: str) -> Form:
    """What weights of a decoder in ``precision`` are attached for in the dialect ``name``."""
    from foveate.calib.schemes.scheme import Form  # ONNX comes with it

    module = dialect(name)
    return Form(module.DTYPES[precision], module.DYNAMIC, module.ZERO_POINTS)


def lower(model: ir.Model, spec: GraphSpec, name: str, *, widened: bool = False) -> ir.Model:
    """A copy of ``model`` in the dialect ``name``. ``widened``: it was traced in float32, and takes and gives float16."""
    from onnx_ir.passes import common

    from foveate.export.lowering.common_passes import Float16Edges

    model = model.clone()
    if widened:
        Float16Edges(spec)(model)
    # ONNX wants a name once, in subgraphs as well. Constants of loops go out of them: ONNX Runtime 1.23.2 writes those of a
    # subgraph twice into the model that it optimized, and then refuses it.
    tidy = (common.LiftSubgraphInitializersToMainGraphPass(), common.NameFixPass())
    for rewrite in (*dialect(name).passes(spec), *tidy):
        rewrite(model)
    return model

"""A graph on its way to ONNX: a module without memory, its interface, and the weights that it names."""

from __future__ import annotations

import inspect
from dataclasses import dataclass

from torch import nn

from foveate.engines.spec import GraphSpec

__all__ = ["Graph"]


@dataclass(frozen=True)
class Graph:
    """``names`` tells the weight of a parameter: the first start of its path that fits is replaced; where none fits
    the weight is ``<graph>.<path>``. Graphs that name the same weight share it in the bundle."""

    spec: GraphSpec
    module: nn.Module  # on the meta device
    names: tuple[tuple[str, str], ...] = ()

    def weight(self, path: str) -> str:
        for start, there in self.names:
            if path.startswith(start):
                return there + path.removeprefix(start)
        return f"{self.spec.name}.{path}"

    @property
    def num_named_inputs(self) -> int:
        """How many inputs ``forward`` names before a variadic ``*rest``."""
        kinds = [p.kind for p in inspect.signature(self.module.forward).parameters.values()]
        return sum(kind is not inspect.Parameter.VAR_POSITIONAL for kind in kinds)

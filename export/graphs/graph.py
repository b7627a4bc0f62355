"""A graph before its export to ONNX: a module on the meta device, its interface and its weights' names."""

from __future__ import annotations

import inspect
from dataclasses import dataclass

from torch import nn

from foveate.engines.spec import GraphSpec

__all__ = ["Graph"]


@dataclass(frozen=True)
class Graph:
    """A module with its interface.

    ``names`` maps prefixes of parameter paths to prefixes of weight names. The first prefix that fits is
    replaced; without one the weight is called ``<graph>.<path>``. Graphs that name the same weight share it
    in the bundle.
    """

    spec: GraphSpec
    module: nn.Module  # on the meta device
    names: tuple[tuple[str, str], ...] = ()

    def weight(self, path: str) -> str:
        """Return the name of the weight of the parameter at ``path``."""
        for start, there in self.names:
            if path.startswith(start):
                return there + path.removeprefix(start)
        return f"{self.spec.name}.{path}"

    @property
    def num_named_inputs(self) -> int:
        """Number of inputs that ``forward`` names before a variadic ``*rest``."""
        kinds = [p.kind for p in inspect.signature(self.module.forward).parameters.values()]
        return sum(kind is not inspect.Parameter.VAR_POSITIONAL for kind in kinds)

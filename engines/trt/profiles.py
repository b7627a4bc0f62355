"""The spec of a graph as TensorRT compiles it, and its optimization profiles."""

from __future__ import annotations

from dataclasses import replace

from foveate.engines import topk_logits
from foveate.engines.backend import Options
from foveate.engines.spec import Dim, GraphSpec, Symbol, TensorSpec
from foveate.engines.trt.limits import LARGEST_SORT

__all__ = ["Profile", "compiled", "profiles", "settled"]


def compiled(spec: GraphSpec, options: Options) -> GraphSpec:
    """Return the spec of the plan that these options give. See ``engines.trt.backend``."""
    spec = settled(spec, options["max_context"])
    return topk_logits.offer(spec) if options.get("device_sampling") else spec


def settled(spec: GraphSpec, max_context: int) -> GraphSpec:
    """Return the spec as compiled.

    The cache has ``max_context`` rows, at most that many new rows are computed at once, and budgets are at
    most ``LARGEST_SORT``.
    """

    def limited(symbol: Symbol) -> Symbol:
        most = {"tokens": max_context}.get(symbol.name, LARGEST_SORT if symbol.name in values else symbol.max)
        high = min(symbol.max, most)
        return Symbol(symbol.name, min(symbol.min, high), min(symbol.opt, high), high)

    def size(dim: Dim) -> Dim:
        if isinstance(dim, int):
            return dim
        return max_context if dim.name == "cache" else limited(dim)

    def settle(tensor: TensorSpec) -> TensorSpec:
        return replace(
            tensor,
            shape=tuple(map(size, tensor.shape)),
            value=None if tensor.value is None else limited(tensor.value),
        )

    values = {tensor.value.name for tensor in spec.inputs if tensor.value is not None}
    return replace(spec, inputs=tuple(map(settle, spec.inputs)), outputs=tuple(map(settle, spec.outputs)))


Profile = dict[str, list[list[int]]]
"""Input name -> its min, opt and max shape, or value if the value determines shapes."""


def profiles(spec: GraphSpec) -> list[Profile]:
    """Return the optimization profiles of a settled spec.

    The first covers all ranges. With a cache there is a second one for decode: a single new row.
    """

    def profile(**fixed: int) -> Profile:
        def ends(dim: Dim) -> list[int]:
            if isinstance(dim, int):
                return [dim] * 3
            return [fixed[dim.name]] * 3 if dim.name in fixed else [dim.min, dim.opt, dim.max]

        found: Profile = {}
        for tensor in spec.inputs:
            if tensor.value is not None:
                found[tensor.name] = [[end] for end in ends(tensor.value)]
            elif any(isinstance(dim, Symbol) for dim in tensor.shape):
                found[tensor.name] = [list(shape) for shape in zip(*map(ends, tensor.shape), strict=True)]
        return found

    return [profile(), profile(tokens=1)] if spec.in_place else [profile()]

"""TensorRT-RTX: compile standard ONNX graphs to plans; needs no GPU.

In: a lowered graph (dialect ``native``, float16) and its GraphSpec, from which the optimization profiles come.
Out: the bytes of a plan. Networks are strongly typed: types come from the file and nothing else.
"""

from __future__ import annotations

from pathlib import Path

import tensorrt_rtx as trt

from foveate.engines.errors import UserError
from foveate.engines.onnx_dims import fix_dimensions
from foveate.engines.spec import Dim, GraphSpec

__all__ = ["capabilities", "compile_plan"]


def capabilities() -> list[str]:
    """The GPU targets that can be named, e.g. ``SM86``; without one the plan is portable from SM80 on."""
    return sorted(name for name in trt.ComputeCapability.__members__ if name.startswith("SM"))


class _Log(trt.ILogger):
    """Keeps what the parser and the builder say, so that an error can say why."""

    def __init__(self) -> None:
        trt.ILogger.__init__(self)
        self.lines: list[str] = []

    def log(self, severity: trt.ILogger.Severity, message: str) -> None:
        if severity <= trt.ILogger.Severity.WARNING:
            self.lines.append(message)


def compile_plan(
    path: Path, spec: GraphSpec, *, max_context: int = 4096, capability: str | None = None
) -> bytes:
    """Parse and build ``path``: one optimization profile over the spec's ranges, and a second one for decoding
    (one new row) where the graph has a cache. The cache is ``max_context`` rows long, a number in the engine.

    Raises UserError with the engine's own words when a node is refused, and when an input would be ignored
    (TensorRT drops ``nonpad_kv_seqlen`` with no more than a warning).
    """
    log = _Log()
    builder = trt.Builder(log)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)
    model = fix_dimensions(path.read_bytes(), {"cache": max_context})
    if not parser.parse(model, str(path)):
        errors = "; ".join(_say(parser.get_error(i)) for i in range(parser.num_errors))
        raise UserError(
            f"TensorRT-RTX {trt.__version__} cannot parse {path.name} | {errors} | build another dialect"
        )
    config = builder.create_builder_config()
    if capability is not None:
        if capability not in capabilities():
            raise UserError(
                f"{capability} is not a target of TensorRT-RTX | it has {', '.join(capabilities())}"
            )
        config.num_compute_capabilities = 1
        config.set_compute_capability(trt.ComputeCapability.__members__[capability], 0)
    prefill = {"cache": (max_context, max_context), "tokens": (1, max_context)}
    decode = prefill | {"tokens": (1, 1)}
    for bounds in [prefill, decode] if spec.in_place else [{}]:
        config.add_optimization_profile(_profile(builder, spec, bounds))
    plan = builder.build_serialized_network(network, config)
    ignored = [line for line in log.lines if "Unused Input" in line]
    if plan is None or ignored:
        said = "; ".join(ignored or log.lines[-3:])
        raise UserError(
            f"TensorRT-RTX {trt.__version__} cannot compile {path.name} | {said} | build another dialect"
        )
    return bytes(plan)


def _say(error: trt.ParserError) -> str:
    where = f"{error.node_operator()} {error.node_name()}".strip()
    return f"{where}: {error.desc()}" if where else error.desc()


def _profile(
    builder: trt.Builder, spec: GraphSpec, bounds: dict[str, tuple[int, int]]
) -> trt.IOptimizationProfile:
    """The ranges of the spec, those of the symbols in ``bounds`` clipped to (least, most)."""

    def size(dim: Dim, end: str) -> int:
        if isinstance(dim, int):
            return dim
        low, high = bounds.get(dim.name, (dim.min, dim.max))
        return min(max(getattr(dim, end), low), high)

    profile = builder.create_optimization_profile()
    for tensor in spec.inputs:
        if tensor.value is not None:
            sizes = ([size(tensor.value, end)] for end in ("min", "opt", "max"))
            profile.set_shape_input(tensor.name, *sizes)
        elif any(not isinstance(dim, int) for dim in tensor.shape):
            shapes = (tuple(size(dim, end) for dim in tensor.shape) for end in ("min", "opt", "max"))
            profile.set_shape(tensor.name, *shapes)
    return profile

"""Builds a plan from an ONNX file. Runs in a process of its own, so that all its memory is freed.

It reads a job as JSON from stdin (target, source, spec, options, plan, cache). It writes the plan, and prints
facts about it as JSON to stdout, or ``{"error": ...}`` with the message of the parser or the builder.
Progress goes to stderr. Networks are strongly typed: all types come from the file. If the builder can, it
streams the plan into its file, which saves one copy of it in memory. Written for TensorRT 10.3 to 11 and
TensorRT-RTX; only the last has run here.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import sys
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

from foveate.engines import topk_logits
from foveate.engines.child import end_with
from foveate.engines.disk.files import atomic_file
from foveate.engines.errors import UserError
from foveate.engines.spec import Dim, GraphSpec, Symbol, TensorSpec
from foveate.engines.trt import logger, plan_file
from foveate.engines.trt.cuda import find_gpu
from foveate.engines.trt.onnx_dims import fix_dimensions

__all__ = ["MODULES", "build", "capabilities", "compiled", "profiles", "settled"]

MODULES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
"""Target -> the Python module of its binding."""

LARGEST_SORT = 3840
"""Largest k of TensorRT's TopK (its documented limit)."""

_DIGEST = 32  # bytes of a SHA-256
_NO_MEMORY = ("out of memory", "outofmemory", "insufficient memory", "cudaerrormemoryallocation")


def compiled(spec: GraphSpec, options: Mapping[str, Any]) -> GraphSpec:
    """Return the spec of the plan that these options give. See ``engines.trt.backend``."""
    spec = settled(spec, options["max_context"])
    return topk_logits.offer(spec) if options.get("device_sampling") else spec


def settled(spec: GraphSpec, max_context: int) -> GraphSpec:
    """Return the spec as compiled.

    The cache has ``max_context`` rows, at most that many new rows are computed at once, and budgets are at
    most ``LARGEST_SORT``.
    """

    def size(dim: Dim) -> Dim:
        if isinstance(dim, int):
            return dim
        if dim.name == "cache":
            return max_context
        most = {"tokens": max_context}.get(dim.name, LARGEST_SORT if dim.name in values else dim.max)
        high = min(dim.max, most)
        return Symbol(dim.name, min(dim.min, high), min(dim.opt, high), high)

    def settle(tensor: TensorSpec) -> TensorSpec:
        return replace(
            tensor,
            shape=tuple(map(size, tensor.shape)),
            value=None if tensor.value is None else size(tensor.value),
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


def capabilities(trt: ModuleType) -> list[str]:
    """Return the GPU architectures that can be asked for, e.g. ``SM86``.

    The list is empty for full TensorRT, which builds for the GPU that it runs on.
    """
    known = getattr(trt, "ComputeCapability", None)
    return sorted(name for name in known.__members__ if name.startswith("SM")) if known else []


def build(
    trt: ModuleType,
    source: Path,
    spec: GraphSpec,
    options: Mapping[str, Any],
    plan: Path,
    cache: Path | None = None,
) -> dict[str, Any]:
    """Write the ``plan`` of ``source`` and return facts about it. ``spec`` is typed, as its dialect needs.

    ``options``: see ``engines.trt.backend``. ``cache`` is the file of the timing cache. It is read if it
    exists, and written at the end. Raises UserError with the engine's own message if a node is refused, if
    memory runs out, if an input would be ignored (TensorRT drops ``nonpad_kv_seqlen`` with only a warning),
    and if the disk is full. Then there is no plan.
    """
    start, log, notes = time.perf_counter(), logger.log(trt), []
    spec = compiled(spec, options)
    builder = trt.Builder(log)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    _parse(trt, network, log, source, options["max_context"])
    if any(tensor.name == topk_logits.VALUES for tensor in spec.outputs):
        _pick_candidates(trt, network, spec.output(topk_logits.VALUES).shape[-1])
    layers = _layers(network)
    config = _config(trt, builder, options)
    ranges = profiles(spec)
    for each in ranges:
        config.add_optimization_profile(_profile(builder, spec, each))
    timings = _read_timings(config, cache, notes)
    with plan_file.written(plan) as file:
        built = plan_file.serialize(trt, builder, network, config, file)
        ignored = [line for line in log.lines if "Unused Input" in line]
        if not built or ignored:
            raise UserError(_refusal(trt, source, "; ".join(ignored) or log.said()))
    if timings is not None:
        _write_timings(timings, cache)
    return {
        "bytes": file.size,
        "sha256": file.digest.hexdigest(),
        "seconds": round(time.perf_counter() - start, 3),
        "layers": layers,
        "profiles": ranges,
        "notes": notes,
    }


def _parse(trt: ModuleType, network: Any, log: Any, source: Path, max_context: int) -> None:
    parser = trt.OnnxParser(network, log)
    model = fix_dimensions(source.read_bytes(), {"cache": max_context})
    if not parser.parse(model, str(source)):
        errors = [_say(parser.get_error(i)) for i in range(parser.num_errors)]
        raise UserError(
            f"{trt.__name__} {trt.__version__} cannot parse {source.name} "
            f"| {'; '.join(errors) or log.said()} "
            "| take another dialect (--dialect), or leave out what needs the operator"
        )


def _pick_candidates(trt: ModuleType, network: Any, count: int) -> None:
    """Add the outputs that ``topk_logits.offer`` describes."""
    outputs = map(network.get_output, range(network.num_outputs))
    logits = next(output for output in outputs if output.name == "logits")
    layer = network.add_topk(logits, trt.TopKOperation.MAX, count, 1 << len(logits.shape) - 1)
    for number, name in enumerate((topk_logits.VALUES, topk_logits.IDS)):
        found = layer.get_output(number)
        found.name = name
        network.mark_output(found)


def _say(error: Any) -> str:
    where = f"{error.node_operator()} {error.node_name()}".strip()
    return f"{where}: {error.desc()}" if where else error.desc()


def _refusal(trt: ModuleType, source: Path, said: str) -> str:
    if any(sign in said.lower() for sign in _NO_MEMORY):
        return (
            f"no memory to compile {source.name} | {said} "
            "| a shorter --max-context, --workspace with fewer MiB, or other programs closed"
        )
    return (
        f"{trt.__name__} {trt.__version__} cannot compile {source.name} | {said} "
        "| take another dialect (--dialect)"
    )


def _layers(network: Any) -> dict[str, int]:
    """Count the layers per output dtype. This shows in which precision a strongly typed network computes."""
    found: Counter[str] = Counter()
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        if layer.num_outputs:
            found[layer.get_output(0).dtype.name.lower()] += 1
    return dict(found.most_common())


def _config(trt: ModuleType, builder: Any, options: Mapping[str, Any]) -> Any:
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # so that an engine can be inspected
    config.progress_monitor = logger.monitor(trt)
    if options.get("optimization_level") is not None:
        config.builder_optimization_level = options["optimization_level"]
    if options.get("workspace") is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options["workspace"] << 20)
    if options.get("version_compatible"):
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    if options.get("hardware_compatible"):
        config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
    if named := options.get("capability"):
        config.num_compute_capabilities = len(named)
        for index, name in enumerate(named):
            config.set_compute_capability(trt.ComputeCapability.__members__[name], index)
    return config


def _profile(builder: Any, spec: GraphSpec, ranges: Profile) -> Any:
    profile = builder.create_optimization_profile()
    for name, (least, usual, most) in ranges.items():
        if spec.input(name).value is not None:
            profile.set_shape_input(name, least, usual, most)
        else:
            profile.set_shape(name, tuple(least), tuple(usual), tuple(most))
    return profile


def _read_timings(config: Any, file: Path | None, notes: list[str]) -> Any:
    """Attach and return the timing cache.

    It is new if the file is missing, damaged, or of another GPU or version.
    """
    if file is None:
        return None
    if content := _checked(file, notes):
        cache = config.create_timing_cache(content)
        if cache is not None and config.set_timing_cache(cache, ignore_mismatch=False):
            return cache
        notes.append(f"the timing cache {file.name} is of another machine: begun anew")
    cache = config.create_timing_cache(b"")
    config.set_timing_cache(cache, ignore_mismatch=False)
    return cache


def _checked(file: Path, notes: list[str]) -> bytes:
    """Return the content behind the SHA-256 in ``file``, or ``b""`` if they do not match.

    TensorRT-RTX accepts a damaged cache without an error.
    """
    if not file.is_file():
        return b""
    content = file.read_bytes()
    digest, content = content[:_DIGEST], content[_DIGEST:]
    if hashlib.sha256(content).digest() == digest:
        return content
    notes.append(f"the timing cache {file.name} is damaged: begun anew")
    return b""


def _write_timings(cache: Any, file: Path) -> None:
    content = bytes(cache.serialize())
    with atomic_file(file) as part:
        part.write_bytes(hashlib.sha256(content).digest() + content)


def _peak() -> int | None:
    try:
        import resource
    except ImportError:  # Windows
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _main(job: Mapping[str, Any]) -> dict[str, Any]:
    trt = importlib.import_module(MODULES[job["target"]])
    spec = GraphSpec.from_json(job["spec"])
    try:
        cache, plan = Path(job["cache"]) if job["cache"] else None, Path(job["plan"])
        facts = build(trt, Path(job["source"]), spec, job["options"], plan, cache)
    except UserError as error:
        return {"error": str(error)}
    return facts | {"peak_bytes": _peak()} | _on_the_gpu(trt, plan, job["options"])


def _on_the_gpu(trt: ModuleType, plan: Path, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return what only an engine on a GPU tells: memory besides the weights, and kernels with their types."""
    if isinstance(find_gpu(), str):
        return {}
    runtime = trt.Runtime(trt.Logger(trt.Logger.ERROR))
    if options.get("version_compatible"):
        runtime.engine_host_code_allowed = True
    engine = runtime.deserialize_cuda_engine(plan.read_bytes())
    if engine is None:  # a plan for other GPUs
        return {}
    told = engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON)
    return {"device_bytes": engine.device_memory_size_v2, "kernels": json.loads(told).get("Layers", [])}


if __name__ == "__main__":
    given = json.load(sys.stdin)
    end_with(given["parent"])
    print(json.dumps(_main(given)))

"""Builds a plan from an ONNX file. Runs in a process of its own, so that all its memory is freed.

It reads a job as JSON from stdin (target, source, spec, options, plan, cache). It writes the plan, and prints
a line of JSON to stdout: facts about the plan, or ``{"error": ...}`` with the message of the parser or the
builder. A second line has what an engine on the GPU tells; the plan is good without it.
Progress goes to stderr. Networks are strongly typed: all types come from the file. If the builder can, it
streams the plan into its file, which saves one copy of it in memory. Written for TensorRT 10.3 to 11 and
TensorRT-RTX; only the last has run here.
"""

from __future__ import annotations

import importlib
import json
import mmap
import sys
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from foveate.engines import topk_logits
from foveate.engines.backend import Options
from foveate.engines.child import end_with
from foveate.engines.errors import RefusedError, UserError
from foveate.engines.spec import GraphSpec
from foveate.engines.trt import logger, plan_file, timing_cache
from foveate.engines.trt.cuda.gpu import find_gpu
from foveate.engines.trt.library import LIBRARY
from foveate.engines.trt.onnx_dims import fix_dimensions
from foveate.engines.trt.profiles import Profile, compiled, profiles

__all__ = ["build", "capabilities"]

_NO_MEMORY = ("out of memory", "outofmemory", "insufficient memory", "cudaerrormemoryallocation")


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
    options: Options,
    plan: Path,
    cache: Path | None = None,
) -> dict[str, Any]:
    """Write the ``plan`` of ``source`` and return facts about it. ``spec`` is typed, as its dialect needs.

    ``options``: see ``engines.trt.backend``. ``cache`` is the file of the timing cache. It is read if it
    exists, and written at the end. Raises UserError with the engine's own message if a node is refused, if
    memory runs out, if an input would be ignored (TensorRT drops ``nonpad_kv_seqlen`` with only a warning),
    and if the disk is full. Then there is no plan.
    """
    start, log = time.perf_counter(), logger.log(trt)
    log.clear()
    notes: list[str] = []
    spec = compiled(spec, options)
    builder = logger.started(trt, "Builder")
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    _parse(trt, network, log, source, options["max_context"])
    if any(tensor.name == topk_logits.VALUES for tensor in spec.outputs):
        count = spec.output(topk_logits.VALUES).shape[-1]
        assert isinstance(count, int), "topk_logits.offer gives a number"
        _pick_candidates(trt, network, count)
    if unused := _unused(network):
        raise _refusal(trt, source, f"Unused Input: {', '.join(unused)}")
    layers = _layers(network)
    config = _config(trt, builder, options)
    ranges = profiles(spec)
    for each in ranges:
        if config.add_optimization_profile(_profile(builder, spec, each)) < 0:
            raise _refusal(trt, source, f"the profile {each} is refused, {log.said()}")
    timings = timing_cache.attach(config, cache, notes)
    with plan_file.written(plan) as file:
        built = plan_file.serialize(trt, builder, network, config, file)
        if not built:
            raise _refusal(trt, source, log.said())
    if timings is not None and cache is not None:
        try:
            timing_cache.write(timings, cache)
        except OSError as error:  # the plan is finished, and good without it
            notes.append(f"the timing cache was not kept: {error.strerror}")
    return {
        "bytes": file.size,
        "sha256": file.digest.hexdigest(),
        "seconds": round(time.perf_counter() - start, 3),
        "layers": layers,
        "scratch_bytes": log.scratch,
        "profiles": ranges,
        "notes": notes,
    }


def _parse(trt: ModuleType, network: Any, log: Any, source: Path, max_context: int) -> None:
    parser = trt.OnnxParser(network, log)
    model = fix_dimensions(source.read_bytes(), {"cache": max_context})
    if not parser.parse(model, str(source)):
        errors = [_say(parser.get_error(i)) for i in range(parser.num_errors)]
        raise RefusedError(
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


def _refusal(trt: ModuleType, source: Path, said: str) -> UserError:
    if any(sign in said.lower() for sign in _NO_MEMORY):
        return UserError(
            f"no memory to compile {source.name} | {said} "
            "| a shorter --max-context, --workspace with fewer MiB, or other programs closed"
        )
    return RefusedError(
        f"{trt.__name__} {trt.__version__} cannot compile {source.name} | {said} "
        "| take another dialect (--dialect)"
    )


def _unused(network: Any) -> list[str]:
    """Return the inputs that no layer reads."""
    names = [network.get_input(index).name for index in range(network.num_inputs)]
    read = set()
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        given = map(layer.get_input, range(layer.num_inputs))
        read |= {tensor.name for tensor in given if tensor is not None}
    return [name for name in names if name not in read]


def _layers(network: Any) -> dict[str, int]:
    """Count the layers per output dtype. This shows in which precision a strongly typed network computes."""
    found: Counter[str] = Counter()
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        if layer.num_outputs:
            found[layer.get_output(0).dtype.name.lower()] += 1
    return dict(found.most_common())


def _config(trt: ModuleType, builder: Any, options: Options) -> Any:
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


def _peak() -> int | None:
    try:
        import resource
    except ImportError:  # Windows
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _main(job: Mapping[str, Any]) -> None:
    """Build, and print the facts. The plan is finished then: what fails after it does no harm."""
    trt = importlib.import_module(LIBRARY[job["target"]])
    spec = GraphSpec.from_json(job["spec"])
    try:
        cache, plan = Path(job["cache"]) if job["cache"] else None, Path(job["plan"])
        facts = build(trt, Path(job["source"]), spec, job["options"], plan, cache)
    except UserError as error:
        _print({"error": str(error), "refused": isinstance(error, RefusedError)})
        return
    _print(facts | {"peak_bytes": _peak()})
    try:
        _print(_on_the_gpu(trt, plan, job["options"]))
    except Exception as error:  # noqa: BLE001, whatever it is
        _print({"not_looked_at": f"{type(error).__name__}: {error}"})


def _print(facts: dict[str, Any]) -> None:
    print(json.dumps(facts), flush=True)


def _on_the_gpu(trt: ModuleType, plan: Path, options: Options) -> dict[str, Any]:
    """Return what only an engine on a GPU tells: memory besides the weights, and kernels with their types."""
    if isinstance(find_gpu(), str):
        return {}
    runtime = logger.runtime(trt)
    runtime.engine_host_code_allowed = bool(options.get("version_compatible"))
    with plan.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        engine = runtime.deserialize_cuda_engine(content)
    if engine is None:  # a plan for other GPUs
        return {}
    told = engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON)
    return {"device_bytes": engine.device_memory_size_v2, "kernels": json.loads(told).get("Layers", [])}


if __name__ == "__main__":
    given = json.load(sys.stdin)
    end_with(given["parent"])
    _main(given)

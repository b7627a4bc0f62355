"""Runs a plan on the GPU. Prefill and decode are two profiles of one engine, so weights are loaded once.

Written against the documented API of TensorRT 10.3 to 11 and TensorRT-RTX. We have never run it on a GPU;
``pytest -m gpu`` and ``scripts/gpu_check.sh`` are for whoever has one. CUDA graphs (option ``cuda_graphs``)
and picking the most likely tokens on the device (``device_sampling``) are off by default.
"""

from __future__ import annotations

import json
import math
import mmap
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from foveate.engines.backend import Options
from foveate.engines.buffer import Feed, host
from foveate.engines.disk.files import sha256
from foveate.engines.engine import check_feeds, resolve
from foveate.engines.errors import NoMemoryError, RefusedError, UserError
from foveate.engines.row_gather import Rows
from foveate.engines.spec import GraphSpec
from foveate.engines.trt import logger, plan_check
from foveate.engines.trt.contexts import Contexts, Prepared
from foveate.engines.trt.cuda.device import Device, TrtBuffer, device
from foveate.engines.trt.cuda.step_graphs import StepGraphs

__all__ = ["TrtEngine", "load"]

_Buffers = Mapping[str, TrtBuffer]
_Step = tuple[_Buffers, _Buffers, _Buffers]
"""Inputs and outputs of a decode step, and the cache that it writes."""


def load(trt: ModuleType, target: str, file: Path, spec: GraphSpec, options: Options) -> TrtEngine:
    """Load the plan ``file`` with the binding ``trt``. See ``TensorRT.load``."""
    home = device()
    facts = json.loads(file.with_suffix(".json").read_text(encoding="utf-8"))
    # Before the plan is read: on an integrated GPU, reading it takes from the memory that is counted.
    _require_room(file, spec, facts.get("scratch_bytes") or 0, home)
    if sha256(file, forget=True) != facts["sha256"]:
        raise UserError(
            f"{file.name} has changed since it was compiled | {file} | compile again with --force"
        )
    # Mapped, since on a Jetson the weights and the plan's copy of them share one memory.
    with file.open("rb") as opened:
        plan = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
    engine = _deserialized(trt, plan, home, bool(options.get("version_compatible")))
    if engine is None:
        raise RefusedError(
            f"{target} {trt.__version__} does not load {file.name} | {logger.log(trt).said()} "
            "| compile again with --force"
        )
    if fault := plan_check.difference(trt, engine, spec):
        raise RefusedError(f"{file.name} does not fit its graph | {fault} | compile again with --force")
    kernels = file.with_name(f".{file.stem}.kernels")
    contexts = Contexts(trt, engine, home, file.name, kernels, bool(options.get("cuda_graphs")))
    return TrtEngine(trt, engine, contexts, spec, home, bool(options.get("cuda_graphs")))


def _require_room(file: Path, spec: GraphSpec, scratch: int, home: Device) -> None:
    """Raise NoMemoryError if the GPU has no room for the plan, its kv cache and its scratch memory.

    ``scratch`` bytes are what the builder reported; all plans share the largest.
    """
    caches = [spec.input(into) for _, into in spec.in_place]
    parts = {
        "for the plan": file.stat().st_size,
        "of kv cache": sum(math.prod(t.extent("max")) * np.dtype(t.dtype).itemsize for t in caches),
        "of scratch": max(0, scratch - home.scratch_size),
    }
    if (free := home.free_memory()) < sum(parts.values()):
        needed = ", ".join(f"{size >> 20} {what}" for what, size in parts.items() if size >> 20)
        raise NoMemoryError(
            f"the GPU has no room for {file.name} "
            f"| {free >> 20} MiB are free, it needs {sum(parts.values()) >> 20}: {needed or 'little'} "
            "| close other programs, compile with a shorter --max-context, or build with int4 weights"
        )


def _deserialized(trt: ModuleType, plan: Any, home: Device, own_runtime: bool) -> Any:
    """Return the engine of a plan, or None if TensorRT refuses it."""
    runtime = logger.runtime(trt)
    logger.log(trt).clear()
    runtime.engine_host_code_allowed = own_runtime  # a version-compatible plan carries its own runtime
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None and home.release():
        engine = runtime.deserialize_cuda_engine(plan)
    return engine


class TrtEngine:
    """One graph as a TensorRT engine.

    Every output gets its own buffer, which is reused when nobody holds it.
    """

    def __init__(
        self,
        trt: ModuleType,
        engine: Any,
        contexts: Contexts,
        spec: GraphSpec,
        home: Device,
        cuda_graphs: bool,
    ) -> None:
        self.spec, self._contexts, self._home, self._trt = spec, contexts, home, trt
        on_host = trt.TensorLocation.HOST
        self._hosted = {t.name for t in spec.inputs if engine.get_tensor_location(t.name) == on_host}
        self._staged: dict[str, TrtBuffer] = {}
        captures = cuda_graphs and not contexts.own_graphs and not self._hosted
        self._graphs = StepGraphs(home, spec.name) if captures else None

    def allocate(self, name: str, sizes: Mapping[str, int], content: np.ndarray | None = None) -> TrtBuffer:
        """Return a zeroed buffer for the input ``name``. See ``Engine.allocate``."""
        buffer = TrtBuffer(self._home, resolve(self.spec, name, sizes), self.spec.input(name).dtype)
        self._home.clear(buffer.address, buffer.nbytes)
        if content is not None and content.ndim == 4:
            self._home.copy_rows(buffer, 0, content)
        elif content is not None:
            whole = np.zeros(buffer.shape, buffer.dtype)
            whole[tuple(slice(n) for n in content.shape)] = content
            self._home.upload(buffer.address, whole)
        return buffer

    def gather(self, name: str, rows: Rows) -> np.ndarray | TrtBuffer:
        """Return ``rows`` as an input, on the GPU if some of them are there. See ``Engine.gather``."""
        dtype, on_device = self.spec.input(name).dtype, [s for s in rows.sources if isinstance(s, TrtBuffer)]
        if not on_device:
            return rows.numpy(dtype)[None]
        if others := {source.dtype for source in on_device} - {dtype}:
            raise ValueError(
                f"{self.spec.name}: rows of {name} on the device are {', '.join(others)} | expected {dtype}"
            )
        found = TrtBuffer(self._home, (1, *rows.shape), dtype)
        self._home.gather(found.address, rows, dtype)
        return found

    def run(self, feeds: Mapping[str, Feed]) -> dict[str, TrtBuffer]:
        """Run the graph and return every output by name. See ``Engine.run``."""
        check_feeds(self.spec, feeds)
        written = {out: self._cache(past, feeds[past]) for out, past in self.spec.in_place}
        chosen, decoding = self._context(feeds)
        context = chosen.context
        # TensorRT reads values that determine shapes on the host, everything else on the GPU
        values = {name: np.array(host(feeds[name]), order="C") for name in feeds if name in self._hosted}
        held = {name: self._on_gpu(name, feed) for name, feed in feeds.items() if name not in values}
        places = {name: self._home.keep(value) for name, value in values.items()}
        places |= {name: buffer.address for name, buffer in held.items()}
        for name, address in places.items():
            shape = tuple(feeds[name].shape)
            self._require(context.set_input_shape(name, shape), f"refuses {name} of shape {shape}")
            self._bind(context, name, address)
        if missing := context.infer_shapes():
            raise RuntimeError(f"{self.spec.name}: TensorRT lacks the shapes of {', '.join(missing)}")
        shapes = tuple(feed.shape for feed in feeds.values()), tuple(v.tobytes() for v in values.values())
        self._lend_scratch(chosen, shapes)
        outputs = self._outputs(context, {} if self.spec.appends else written)
        self._execute(context, (held, outputs, written) if decoding else None)
        if self.spec.appends:
            start = int(np.asarray(feeds["write_index"])[0])
            for out, cache in written.items():
                self._home.copy_rows(cache, start, outputs[out])
                outputs[out] = cache
        return outputs

    def _cache(self, name: str, feed: Feed) -> TrtBuffer:
        """Return the buffer of the input ``name``, which is written in place."""
        if not isinstance(feed, TrtBuffer):
            message = f"{self.spec.name}: {name} is written in place | allocate a buffer for it"
            raise ValueError(message)  # noqa: TRY004, as every feed that does not fit
        return feed

    def _lend_scratch(self, to: Prepared, shapes: Any) -> None:
        """Give the context scratch memory. ``shapes`` are its inputs', and the values that shape it."""
        if to.shapes != shapes:  # TensorRT plans its activations again, so ask only if something changed
            # 0 stands for "nothing" and for an error
            to.scratch = to.context.update_device_memory_size_for_shapes() or to.worst
            to.shapes = shapes
        address = self._home.scratch(to.scratch)
        to.context.set_device_memory(address, self._home.scratch_size)

    def _context(self, feeds: Mapping[str, Feed]) -> tuple[Prepared, bool]:
        """Return the context of the profile for these feeds, and True if a single row is decoded."""
        decoding = len(self._contexts) > 1 and feeds[self.spec.inputs[0].name].shape[1] == 1
        return self._contexts[int(decoding)], decoding

    def _on_gpu(self, name: str, feed: Feed) -> TrtBuffer:
        """Return the buffer of an input on the GPU, after copying it there if it is on the host."""
        if isinstance(feed, TrtBuffer):
            return feed
        array = np.ascontiguousarray(feed)
        known = self._staged.get(name)
        if known is None or known.shape != array.shape:
            known = self._staged[name] = TrtBuffer(self._home, array.shape, str(array.dtype))
        self._home.upload(known.address, array)
        return known

    def _outputs(self, context: Any, in_place: Mapping[str, TrtBuffer]) -> dict[str, TrtBuffer]:
        outputs = {}
        for tensor in self.spec.outputs:
            found = in_place.get(tensor.name)
            if found is None:
                shape = tuple(context.get_tensor_shape(tensor.name))
                found = TrtBuffer(self._home, shape, tensor.dtype)
            self._bind(context, tensor.name, found.address)
            outputs[tensor.name] = found
        return outputs

    def _bind(self, context: Any, name: str, address: int) -> None:
        self._require(context.set_tensor_address(name, address), f"refuses the address of {name}")

    def _require(self, answer: object, what: str) -> None:
        """Raise RuntimeError with TensorRT's own words if it answered no."""
        if not answer:
            raise RuntimeError(f"{self.spec.name}: TensorRT {what}: {logger.log(self._trt).said()}")

    def _execute(self, context: Any, step: _Step | None) -> None:
        """Queue the graph on the stream.

        With CUDA graphs, a decode ``step`` whose addresses were seen before is replayed. It is None for other
        runs.
        """
        home = self._home
        if self._graphs is not None:
            self._graphs.sweep()

        def launch() -> None:
            self._require(context.execute_async_v3(home.stream), "did not start")

        if self._graphs is None or step is None:
            return launch()
        held, outputs, caches = step
        bound = [*held.values(), *outputs.values()]
        key = (home.scratch(0), home.scratch_size, *((buffer.address, buffer.shape) for buffer in bound))
        return self._graphs.run(key, launch, next(iter(caches.values())))

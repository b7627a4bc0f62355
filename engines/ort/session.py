"""Runs a compiled graph in ONNX Runtime.

Behaviour of ONNX Runtime 1.31.1 with the files of ``engines.ort.compile``, found by experiment (Linux, CPU):

* External weights are mapped privately from the ``.data`` file, one mapping per tensor, and never read as a
  whole. An int4 model of 1.35 GB loads with 18 MB of anonymous memory, and with 1,560 MB if prepacked weights
  are not saved. Prepacked weights are used from the mapping, and the originals are unmapped after loading.
* Loading still prepacks each weight once more, one at a time, to look it up by its hash. This takes 1.2 s of
  one core per 1.35 GB. ``session.prepack.enable_parallel`` gains nothing there and holds all weights at once.
  ``session.use_mmap`` does not exist. ``session.use_memory_mapped_ort_model`` is for ONNX Runtime's own
  format.
* ``ORT_DISABLE_ALL`` at load keeps the optimizer's results (``MatMulNBits``, fused nodes) and its prepacked
  weights.
* If past and present are bound to one buffer, the cache is updated in place. Otherwise ONNX Runtime copies
  the cache and warns "TensorScatter: in-place optimization not activated".
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from foveate.engines.backend import Options
from foveate.engines.buffer import Feed
from foveate.engines.engine import check_feeds, resolve
from foveate.engines.errors import UserError
from foveate.engines.ort import library, page_release, providers
from foveate.engines.row_gather import Rows
from foveate.engines.spec import GraphSpec

__all__ = ["OrtBuffer", "OrtEngine", "load"]

onnxruntime = library.load()

_SMALL = 8 << 20
"""Size in bytes up to which a tensor's pages are released after loading.

Matrices are larger, and reading them back takes time.
"""


def load(folder: Path, spec: GraphSpec, options: Options) -> OrtEngine:
    """Load the engine ``folder/<graph>.onnx``.

    ``options`` are those of ``compile_graph``, ``threads`` (None: all cores) and ``log_severity``. Raises
    UserError.
    """
    if spec.appends and options.get("provider") == "cuda":
        raise UserError(
            "the dialect primitive runs on the CPU alone in ONNX Runtime | got the provider cuda "
            "| compile with --dialect ort"
        )
    config = onnxruntime.SessionOptions()
    config.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    config.log_severity_level = options.get("log_severity", 3)
    config.intra_op_num_threads = options.get("threads") or 0
    # Otherwise its workers spin for some 20 ms after a run and take a core from the next stage's engine.
    config.add_session_config_entry("session.force_spinning_stop", "1")
    try:
        session = providers.open_session(folder / f"{spec.name}.onnx", config, options)
    except UserError:
        raise
    except Exception as error:  # the binding raises RuntimeError and its own types
        reason = " ".join(str(error).split())
        raise UserError(
            f"ONNX Runtime cannot load {spec.name} | {reason} | compile the bundle again"
        ) from error
    page_release.release(folder / f"{spec.name}.data", _SMALL)
    return OrtEngine(session, spec, options.get("provider") or "cpu")


class OrtBuffer:
    """A ``Buffer`` over an ``OrtValue``. If this module made it on the CPU, its memory is a NumPy array."""

    def __init__(
        self,
        value: Any,  # an onnxruntime.OrtValue; the library has no types
        host: np.ndarray | None = None,
        shape: tuple[int, ...] | None = None,
    ) -> None:
        self.value = value
        self._host = host
        self._shape = shape or tuple(value.shape())

    @property
    def is_head(self) -> bool:
        """True if the buffer is the first part of a larger ``OrtValue``."""
        return self._shape != tuple(self.value.shape())

    @property
    def on_host(self) -> bool:
        """True if the memory is the host's."""
        return self.value.device_name() == "cpu"

    def head(self, rows: int) -> OrtBuffer:
        """Return the first ``rows`` along axis 1 as a buffer over the same memory. Raises ValueError."""
        one, length, *rest = self._shape
        if one != 1 or not 0 < rows <= length:
            raise ValueError(f"no first {rows} rows of a buffer of the shape {self._shape}")
        return OrtBuffer(self.value, self._host, (one, rows, *rest))

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the tensor."""
        return self._shape

    @property
    def dtype(self) -> str:
        """NumPy name of the dtype."""
        return _NUMPY[self.value.data_type()]

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return int(np.prod(self._shape)) * np.dtype(self.dtype).itemsize

    def numpy(self) -> np.ndarray:
        """Return the content on the host: a view if the memory is the host's, else a copy."""
        host = self.value.numpy() if self._host is None else self._host
        if self.on_host:
            self._host = host
        return host[:, : self._shape[1]] if self.is_head else host


_NUMPY = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(int64)": "int64",
    "tensor(int32)": "int32",
    "tensor(bool)": "bool",
}


_LARGE = 256 << 10
"""Size of the inputs in bytes, without caches, above which the arena is freed after a run.

Prefill is large, and many small decode steps follow it. Its activations would stay allocated during all of
them.
"""


class OrtEngine:
    """One graph in ONNX Runtime, run through IO binding."""

    def __init__(
        self,
        session: Any,  # an onnxruntime.InferenceSession; the library has no types
        spec: GraphSpec,
        device: str,
    ) -> None:
        self.session = session
        self.spec = spec
        self.device = device

    def allocate(self, name: str, sizes: Mapping[str, int], content: np.ndarray | None = None) -> OrtBuffer:
        """Return a zeroed buffer for the input ``name``. See ``Engine.allocate``."""
        array = np.zeros(resolve(self.spec, name, sizes), self.spec.input(name).dtype)
        if content is not None:
            array[tuple(slice(n) for n in content.shape)] = content
        value = onnxruntime.OrtValue.ortvalue_from_numpy(array, self.device, 0)
        return OrtBuffer(value, array if self.device == "cpu" else None)

    def gather(self, name: str, rows: Rows) -> np.ndarray:
        """Return ``rows`` on the host. See ``Engine.gather``."""
        return rows.numpy(self.spec.input(name).dtype)[None]

    def run(self, feeds: Mapping[str, Feed]) -> dict[str, OrtBuffer]:
        """Run the graph and return every output by name. See ``Engine.run``."""
        check_feeds(self.spec, feeds)
        caches = {past: self._cache(past, feeds[past]) for _, past in self.spec.in_place}
        binding = self.session.io_binding()
        for name, feed in feeds.items():
            if isinstance(feed, OrtBuffer) and feed.is_head:
                place = feed.value.device_name(), 0, feed.dtype, feed.shape, feed.value.data_ptr()
                binding.bind_input(name, *place)
            elif isinstance(feed, OrtBuffer):
                binding.bind_ortvalue_input(name, feed.value)
            else:
                binding.bind_cpu_input(name, np.asarray(feed, order="C"))
        written = {out: caches[past] for out, past in self.spec.in_place}
        appends = self.spec.appends
        for tensor in self.spec.outputs:
            if tensor.name in written and not appends:
                binding.bind_ortvalue_output(tensor.name, written[tensor.name].value)
            else:
                binding.bind_output(tensor.name, self.device)
        large = sum(feed.nbytes for name, feed in feeds.items() if name not in caches) > _LARGE
        self.session.run_with_iobinding(binding, _run_options(large and self.device == "cpu"))
        values = {t.name: v for t, v in zip(self.spec.outputs, binding.get_outputs(), strict=True)}
        if appends:
            start = int(np.asarray(feeds["write_index"])[0])
            for out, cache in written.items():
                rows = values[out].numpy()
                cache.numpy()[:, :, start : start + rows.shape[2]] = rows
        return {name: written.get(name) or OrtBuffer(value) for name, value in values.items()}

    def _cache(self, name: str, feed: Feed) -> OrtBuffer:
        """Return the buffer of the input ``name``, which is written in place."""
        if not isinstance(feed, OrtBuffer):
            message = f"{self.spec.name}: {name} is written in place | allocate a buffer for it"
            raise ValueError(message)  # noqa: TRY004, as every feed that does not fit
        return feed


def _run_options(give_back: bool) -> Any:
    """Return options that free the CPU's arena after the run, or None. They have no types."""
    if not give_back:
        return None
    options = onnxruntime.RunOptions()
    options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
    return options

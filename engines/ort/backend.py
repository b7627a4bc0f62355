"""ONNX Runtime: compiles a graph to an optimized model with prepacked weights, and runs it.

Compiling takes an ``.onnx`` file of a bundle. It writes ``<graph>.onnx``, already optimized, and
``<graph>.data``. The data file holds each weight and, behind it, its prepacked form: the layout that this
CPU's kernels use. Loading runs no optimizer.

Behaviour of ONNX Runtime 1.31.1 with these files, found by experiment (Linux, CPU):

* External weights are mapped privately from the ``.data`` file, one mapping per tensor, and never read as a
  whole. An int4 model of 1.35 GB loads with 18 MB of anonymous memory, and with 1,560 MB if prepacked weights
  are not saved. Prepacked weights are used from the mapping, and the originals are unmapped after loading.
  The file is 2.2 times as large.
* Loading still prepacks each weight once more, one at a time, to look it up by its hash. This takes 1.2 s of
  one core per 1.35 GB. ``session.prepack.enable_parallel`` gains nothing there and holds all weights at once.
  ``session.use_mmap`` does not exist. ``session.use_memory_mapped_ort_model`` is for ONNX Runtime's own
  format.
* ``ORT_DISABLE_ALL`` at load keeps the optimizer's results (``MatMulNBits``, fused nodes) and its prepacked
  weights.
* The accuracy level is written into the nodes when compiling. The option has no effect at load.
* A prepacked weight must be at a multiple of 64 bytes in the file. The writer ensures that only for tensors
  of 1 MiB and more: smaller ones shift their neighbours (1.32.0 places them right). At a wrong place the int4
  kernel silently reads garbage, and the float32 kernel ends the process (aligned loads). ``compile_graph``
  checks the place of each one. If one is wrong, it leaves the small weights, or all of them, to be prepacked
  at load.
* If past and present are bound to one buffer, the cache is updated in place. Otherwise ONNX Runtime copies
  the cache and warns "TensorScatter: in-place optimization not activated".

The CUDA provider uses the same code. It has not been run on a GPU yet.
"""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from foveate.engines.buffer import Feed
from foveate.engines.child import end_with
from foveate.engines.engine import check_feeds, resolve
from foveate.engines.errors import UserError, unknown
from foveate.engines.ort import library, page_release
from foveate.engines.row_gather import Rows
from foveate.engines.spec import GraphSpec
from foveate.engines.workarounds import applicable

__all__ = [
    "DIALECTS",
    "TARGET",
    "OrtBuffer",
    "OrtEngine",
    "compile_graph",
    "key",
    "load",
    "machine",
    "refused_dialect",
    "workarounds",
]

TARGET = "onnxruntime"
onnxruntime = library.load()
VERSION = onnxruntime.__version__
DIALECTS = ("ort", "primitive") if library.refused_dialect("ort", VERSION) is None else ("primitive",)

workarounds = applicable(TARGET, VERSION)

_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}

# Instruction sets that the kernels test for, best first. Prepacked weights have the chosen kernel's layout.
_INSTRUCTIONS = (
    *("amx_int8", "amx_bf16", "avx512_fp16", "avx512_bf16", "avx512_vnni", "avx_vnni_int8", "avx_vnni"),
    *("avx512f", "avx512bw", "avx512dq", "avx512vl", "avx2", "fma", "f16c", "avx"),
    *("sme2", "sme", "sve2", "sve", "i8mm", "bf16", "asimddp", "asimdhp", "asimd"),
)


def machine(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return ONNX Runtime's version, the provider, and the CPU's instruction sets.

    An engine needs the same ones.

    ``options["provider"]`` is "cpu" (the default) or "cuda". Raises UserError if it is not available here.
    """
    provider = options.get("provider") or "cpu"
    if provider not in _PROVIDERS:
        raise unknown("provider", provider, _PROVIDERS)
    if library.numbers(VERSION) < library.OLDEST:
        least = ".".join(map(str, library.OLDEST))
        raise UserError(f"ONNX Runtime {VERSION} is too old | expected {least} or newer | {library.UPGRADE}")
    available = onnxruntime.get_available_providers()
    if _PROVIDERS[provider] not in available:
        raise UserError(
            f"this ONNX Runtime has no {_PROVIDERS[provider]} | it offers {', '.join(available)} "
            "| pip install onnxruntime-gpu in place of onnxruntime"
        )
    return {"target": TARGET, "version": VERSION, "provider": provider, "cpu": _instructions()}


def refused_dialect(name: str) -> str | None:
    """Return why the dialect ``name`` is not used with this version | what to do, or None if it is used."""
    reason = library.refused_dialect(name, VERSION)
    return reason and f"{reason} | {library.UPGRADE}"


def key(machine: Mapping[str, Any]) -> str:
    """Return the folder name for engines of ``machine``."""
    best = machine["cpu"][0] if machine["cpu"] else platform.machine()
    return f"{TARGET}-{machine['version']}-{machine['provider']}-{best}"


def _instructions(cpuinfo: Path = Path("/proc/cpuinfo")) -> list[str]:
    """Return the ``_INSTRUCTIONS`` that this CPU has. Outside Linux, return the processor's name."""
    if not cpuinfo.is_file():
        return [(platform.processor() or platform.machine()).replace(" ", "-").replace("/", "-")]
    for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
        name, _, value = line.partition(":")
        if name.strip() in ("flags", "Features"):
            have = set(value.split())
            return [name for name in _INSTRUCTIONS if name in have]
    return [platform.machine()]


def compile_graph(source: Path, folder: Path, spec: GraphSpec, options: Mapping[str, Any]) -> list[str]:
    """Write ``folder/<graph>.onnx`` and its data from the ONNX file ``source``. Return notes for the user.

    ``options`` are ``provider`` and ``accuracy_level`` of int4 products (4: activations in int8, fast; 1:
    float32). The compiler runs in a process of its own, so that all its memory is freed. Raises UserError
    with ONNX Runtime's message.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for minimum, prepack, notes in _ATTEMPTS:
        for half in (folder / f"{spec.name}.onnx", folder / f"{spec.name}.data"):
            half.unlink(missing_ok=True)
        job = {"source": str(source), "folder": str(folder), "name": spec.name, "options": dict(options)}
        _compile_apart(source, {**job, "minimum": minimum, "prepack": prepack})
        if not _misplaced(folder / f"{spec.name}.onnx"):
            return list(notes)
    raise AssertionError("without prepacked weights none is misplaced")


# (smallest size in bytes of weights that go to the data file, prepack, notes for the user)
_ATTEMPTS = (
    (1024, True, ()),
    (1 << 20, True, ("small weights are prepacked at load",)),
    (1024, False, ("weights are prepacked at load",)),
)

_PREPACKED = re.compile(rb"prepacked_\d+..?(\w+)\+\d+\|(\d+);", re.DOTALL)
_ALIGNMENT = 64


def _misplaced(model: Path) -> bool:
    """True if a prepacked weight is at a place where its kernel misreads it. See the module's docstring."""
    entries = _PREPACKED.findall(model.read_bytes())
    return any(int(offset) % _ALIGNMENT for _, offset in entries)


def _compile_apart(source: Path, job: Mapping[str, Any]) -> None:
    command = [
        sys.executable,
        "-m",
        "foveate.engines.ort.backend",
        json.dumps({**job, "parent": os.getpid()}),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return
    words = [line for line in done.stderr.splitlines() if line.strip()]
    said = words[-1] if words else f"it ended with status {done.returncode}, as when memory runs out"
    raise UserError(
        f"ONNX Runtime {VERSION} does not take {source.name} | {said} "
        "| build the bundle again, or compile for another target"
    )


def _compile_here(job: Mapping[str, Any]) -> None:
    config = onnxruntime.SessionOptions()
    config.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    # At 2 it warns that the model is for this machine only, which engine.json says too.
    config.log_severity_level = 3
    folder, name, options = Path(job["folder"]), job["name"], job["options"]
    config.optimized_model_filepath = str(folder / f"{name}.onnx")
    entries = {
        "session.optimized_model_external_initializers_file_name": f"{name}.data",
        "session.optimized_model_external_initializers_min_size_in_bytes": str(job["minimum"]),
        "session.save_external_prepacked_constant_initializers": str(int(job["prepack"])),
        "session.qdq_matmulnbits_accuracy_level": str(options.get("accuracy_level", 4)),
    }
    for entry, value in entries.items():
        config.add_session_config_entry(entry, value)
    onnxruntime.InferenceSession(job["source"], config, providers=_providers(options))


def _providers(options: Mapping[str, Any]) -> list[str]:
    provider = options.get("provider") or "cpu"
    return [_PROVIDERS[provider]] if provider == "cpu" else [_PROVIDERS[provider], _PROVIDERS["cpu"]]


_SMALL = 8 << 20
"""Size in bytes up to which a tensor's pages are released after loading.

Matrices are larger, and reading them back takes time.
"""


def load(folder: Path, spec: GraphSpec, options: Mapping[str, Any]) -> OrtEngine:
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
        session = onnxruntime.InferenceSession(
            str(folder / f"{spec.name}.onnx"), config, providers=_providers(options)
        )
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
        value: onnxruntime.OrtValue,
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
        return self.value.device_name() == "cpu"

    def head(self, rows: int) -> OrtBuffer:
        one, length, *rest = self._shape
        if one != 1 or not 0 < rows <= length:
            raise ValueError(f"no first {rows} rows of a buffer of the shape {self._shape}")
        return OrtBuffer(self.value, self._host, (one, rows, *rest))

    @property
    def shape(self) -> tuple[int, ...]:
        return self._shape

    @property
    def dtype(self) -> str:
        return _NUMPY[self.value.data_type()]

    @property
    def nbytes(self) -> int:
        return int(np.prod(self._shape)) * np.dtype(self.dtype).itemsize

    def numpy(self) -> np.ndarray:
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


def _run_options(give_back: bool) -> onnxruntime.RunOptions | None:
    if not give_back:
        return None
    options = onnxruntime.RunOptions()
    options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
    return options


class OrtEngine:
    """One graph in ONNX Runtime, run through IO binding."""

    def __init__(self, session: onnxruntime.InferenceSession, spec: GraphSpec, device: str) -> None:
        self.session, self.spec, self.device = session, spec, device

    def allocate(self, name: str, sizes: Mapping[str, int], content: np.ndarray | None = None) -> OrtBuffer:
        array = np.zeros(resolve(self.spec, name, sizes), self.spec.input(name).dtype)
        if content is not None:
            array[tuple(slice(n) for n in content.shape)] = content
        return self._buffer(array)

    def _buffer(self, array: np.ndarray) -> OrtBuffer:
        value = onnxruntime.OrtValue.ortvalue_from_numpy(array, self.device, 0)
        return OrtBuffer(value, array if self.device == "cpu" else None)

    def gather(self, name: str, rows: Rows) -> np.ndarray:
        return rows.numpy(self.spec.input(name).dtype)[None]

    def run(self, feeds: Mapping[str, Feed]) -> dict[str, OrtBuffer]:
        check_feeds(self.spec, feeds)
        binding = self.session.io_binding()
        for name, feed in feeds.items():
            if isinstance(feed, OrtBuffer) and feed.is_head:
                place = feed.value.device_name(), 0, feed.dtype, feed.shape, feed.value.data_ptr()
                binding.bind_input(name, *place)
            elif isinstance(feed, OrtBuffer):
                binding.bind_ortvalue_input(name, feed.value)
            else:
                binding.bind_cpu_input(name, np.asarray(feed, order="C"))
        shared = dict(self.spec.in_place)
        for source in shared.values():
            if not isinstance(feeds[source], OrtBuffer):
                message = f"{self.spec.name}: {source} is written in place | allocate a buffer for it"
                raise ValueError(message)  # noqa: TRY004, as every feed that does not fit
        appends = self.spec.appends
        for tensor in self.spec.outputs:
            if tensor.name in shared and not appends:
                binding.bind_ortvalue_output(tensor.name, feeds[shared[tensor.name]].value)
            else:
                binding.bind_output(tensor.name, self.device)
        caches = set(shared.values())
        large = sum(feed.nbytes for name, feed in feeds.items() if name not in caches) > _LARGE
        self.session.run_with_iobinding(binding, _run_options(large and self.device == "cpu"))
        values = {t.name: v for t, v in zip(self.spec.outputs, binding.get_outputs(), strict=True)}
        if appends:
            start = int(np.asarray(feeds["write_index"])[0])
            for out, past in shared.items():
                rows = values[out].numpy()
                feeds[past].numpy()[:, :, start : start + rows.shape[2]] = rows
        return {
            name: feeds[shared[name]] if name in shared else OrtBuffer(value)
            for name, value in values.items()
        }


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    end_with(given["parent"])
    _compile_here(given)

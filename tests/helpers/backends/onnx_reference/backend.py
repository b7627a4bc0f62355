"""Onnx's reference evaluator as a backend: it copies a graph, and computes it with NumPy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx.reference import ReferenceEvaluator

from foveate.engines.backend import Backend, Machine, Options
from foveate.engines.buffer import Feed, host
from foveate.engines.engine import Engine, check_feeds, resolve
from foveate.engines.row_gather import Rows
from foveate.engines.spec import GraphSpec

__all__ = ["OnnxReference"]

_TARGET = "onnx-reference"


class OnnxReference(Backend):
    """The backend of the target ``onnx-reference``."""

    @property
    def dialects(self) -> tuple[str, ...]:
        """Dialects of standard ONNX operators that write the kv cache themselves."""
        return ("ort",)

    def machine(self, options: Options) -> Machine:
        """Return onnx's version. The evaluator needs nothing else."""
        return {"target": _TARGET, "version": onnx.__version__}

    def key(self, machine: Machine) -> str:
        """Return the folder name for engines of ``machine``."""
        return f"{_TARGET}-{machine['version']}"

    def compile_graph(self, source: Path, folder: Path, spec: GraphSpec, options: Options) -> list[str]:
        """Write ``folder/<graph>.onnx`` with all its weights inside."""
        onnx.save(onnx.load(source), folder / f"{spec.name}.onnx")
        return []

    def load(self, folder: Path, spec: GraphSpec, options: Options) -> Engine:
        """Load the graph ``folder/<graph>.onnx``."""
        model = onnx.load(folder / f"{spec.name}.onnx")
        return ReferenceEngine(ReferenceEvaluator(model, verbose=options["verbosity"]), spec)


@dataclass(frozen=True)
class ArrayBuffer:
    """A ``Buffer`` that is a NumPy array."""

    array: np.ndarray
    on_host: bool = True

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the tensor."""
        return self.array.shape

    @property
    def dtype(self) -> str:
        """NumPy name of the dtype."""
        return str(self.array.dtype)

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return self.array.nbytes

    def head(self, rows: int) -> ArrayBuffer:
        """Return the first ``rows`` along axis 1 as a buffer over the same memory."""
        if self.shape[0] != 1 or not 0 < rows <= self.shape[1]:
            raise ValueError(f"no first {rows} rows of a buffer of the shape {self.shape}")
        return ArrayBuffer(self.array[:, :rows])

    def numpy(self) -> np.ndarray:
        """Return the array."""
        return self.array


class ReferenceEngine:
    """One graph in the reference evaluator."""

    def __init__(self, evaluator: ReferenceEvaluator, spec: GraphSpec) -> None:
        self.spec = spec
        self._evaluator = evaluator

    def allocate(self, name: str, sizes: Mapping[str, int], content: np.ndarray | None = None) -> ArrayBuffer:
        """Return a zeroed buffer for the input ``name``."""
        array = np.zeros(resolve(self.spec, name, sizes), self.spec.input(name).dtype)
        if content is not None:
            array[tuple(slice(n) for n in content.shape)] = content
        return ArrayBuffer(array)

    def gather(self, name: str, rows: Rows) -> np.ndarray:
        """Return ``rows [R,...]`` as the input ``name [1,R,...]``."""
        return rows.numpy(self.spec.input(name).dtype)[None]

    def run(self, feeds: Mapping[str, Feed]) -> dict[str, ArrayBuffer]:
        """Run the graph. A kv cache is computed anew and copied into the buffer that was fed."""
        check_feeds(self.spec, feeds)
        caches = {out: self._cache(past, feeds[past]) for out, past in self.spec.in_place}
        names = [tensor.name for tensor in self.spec.outputs]
        arrays = {name: np.asarray(host(feed)) for name, feed in feeds.items()}
        found = dict(zip(names, self._evaluator.run(names, arrays), strict=True))
        for name, cache in caches.items():
            cache.array[:] = found[name]
        return {name: caches.get(name) or ArrayBuffer(np.asarray(found[name])) for name in names}

    def _cache(self, name: str, feed: Feed) -> ArrayBuffer:
        if not isinstance(feed, ArrayBuffer):
            raise ValueError(f"{self.spec.name}: {name} is written in place | allocate a buffer for it")  # noqa: TRY004
        return feed

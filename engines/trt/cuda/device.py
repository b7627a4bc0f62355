"""One stream of the GPU, and a pool of memory that is reused."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any

import numpy as np

from foveate.engines.errors import UserError
from foveate.engines.row_gather import Rows
from foveate.engines.trt.cuda.gpu import available_memory, check, find_gpu, runtime
from foveate.engines.trt.cuda.pool import Pool

__all__ = ["Device", "TrtBuffer", "device"]


class Device:
    """One GPU with one stream. All work runs in the order in which it was queued.

    Memory that a buffer gives back is reused by the next one of about its size, so decode steps allocate
    nothing. Since there is only one stream, memory can be reused while the work that reads it is still
    queued. Memory that nobody uses is freed when an allocation fails.
    """

    def __init__(self) -> None:
        self._cuda = runtime()
        self.stream = int(self.call("cudaStreamCreate"))
        self._pool = Pool(
            lambda size: int(self.call("cudaMalloc", size)), partial(self.call, "cudaFree"), self.wait
        )
        self._scratch, self.scratch_size = 0, 0
        self._read: list[np.ndarray] = []  # host memory that queued work reads

    def call(self, name: str, *arguments: Any) -> Any:
        """Call the function ``name`` of the CUDA runtime. Raises MemoryError or RuntimeError."""
        return check(self._cuda, getattr(self._cuda, name)(*arguments))

    def free_memory(self) -> int:
        """Return the bytes that a program can get on the GPU, after freeing those that nobody uses."""
        self.release()
        gpu, free = find_gpu(), self.call("cudaMemGetInfo")[0]
        return free if isinstance(gpu, str) else available_memory(gpu, free)

    def release(self) -> int:
        """Free the memory that nobody uses. Return its size in bytes."""
        return self._pool.release()

    def take(self, size: int) -> int:
        """Return the address of ``size`` bytes. Raises MemoryError."""
        return self._pool.take(size)

    def give(self, address: int) -> None:
        """Take back memory from ``take``."""
        self._pool.give(address)

    def wait(self) -> None:
        """Wait until all queued work is done."""
        self.call("cudaStreamSynchronize", self.stream)
        self._read.clear()

    def keep(self, array: np.ndarray) -> int:
        """Return the address of ``array``, which stays until the queued work that reads it is done."""
        self._read.append(array)
        return array.ctypes.data

    def scratch(self, size: int) -> int:
        """Return the address of at least ``size`` bytes of scratch memory. Engines use it one at a time."""
        if size > self.scratch_size:
            if self._scratch:
                self.wait()
                self.call("cudaFree", self._scratch)
            self._scratch, self.scratch_size = 0, 0
            self._scratch, self.scratch_size = self._pool.allocate(size), size
        return self._scratch

    def upload(self, address: int, array: np.ndarray) -> None:
        """Copy ``array`` to ``address`` on the GPU, and wait for it."""
        self._copy("cudaMemcpyHostToDevice", address, array.ctypes.data, array.nbytes)
        self.wait()  # the array may be gone or changed after this

    def download(self, array: np.ndarray, address: int) -> None:
        """Fill ``array`` from ``address`` on the GPU, and wait for it."""
        self._copy("cudaMemcpyDeviceToHost", array.ctypes.data, address, array.nbytes)
        self.wait()

    def clear(self, address: int, size: int) -> None:
        """Queue setting ``size`` bytes at ``address`` to zero."""
        self.call("cudaMemsetAsync", address, 0, size, self.stream)

    def _copy(self, kind: str, to: int, source: int, size: int) -> None:
        direction = getattr(self._cuda.cudaMemcpyKind, kind)
        self.call("cudaMemcpyAsync", to, source, size, direction, self.stream)

    def copy_rows(self, cache: TrtBuffer, start: int, rows: TrtBuffer | np.ndarray) -> None:
        """Copy ``rows [1,H,T,D]`` to row ``start`` of ``cache [1,H,S,D]`` in one strided copy."""
        _, heads, length, width = rows.shape
        row = width * np.dtype(cache.dtype).itemsize
        kinds, host = self._cuda.cudaMemcpyKind, isinstance(rows, np.ndarray)
        if isinstance(rows, np.ndarray):
            array = np.ascontiguousarray(rows, cache.dtype)
            source, kind = array.ctypes.data, kinds.cudaMemcpyHostToDevice
        else:
            source, kind = rows.address, kinds.cudaMemcpyDeviceToDevice
        self.call(
            "cudaMemcpy2DAsync",
            *(cache.address + start * row, cache.shape[2] * row),
            *(source, length * row),
            *(length * row, heads),
            *(kind, self.stream),
        )
        if host:
            self.wait()

    def gather(self, address: int, rows: Rows, dtype: str) -> None:
        """Copy ``rows`` contiguously to ``address``.

        Rows on the device must have ``dtype``. They take one copy per run of neighbouring rows.
        """
        width = int(np.prod(rows.shape[1:])) * np.dtype(dtype).itemsize
        for number, index in rows.parts():
            source = rows.sources[number]
            if isinstance(source, np.ndarray):
                found = source.reshape(-1, *rows.shape[1:])[index]
                self.upload(address, np.ascontiguousarray(found, dtype))
                address += len(index) * width
                continue
            assert isinstance(source, TrtBuffer), "rows on a GPU are in buffers of this module"
            for run in np.split(index, np.flatnonzero(np.diff(index) != 1) + 1):
                place = source.address + int(run[0]) * width
                self._copy("cudaMemcpyDeviceToDevice", address, place, len(run) * width)
                address += len(run) * width

    def capture(self, work: Callable[[], None]) -> Any:
        """Capture what ``work`` queues as an executable CUDA graph. The work is not run.

        Raises RuntimeError or MemoryError if that is not possible. The stream can be used as before then.
        """
        mode = self._cuda.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self.call("cudaStreamBeginCapture", self.stream, mode)
        try:
            work()
        except BaseException:
            self._cuda.cudaStreamEndCapture(self.stream)  # whatever it answers: the capture is over
            self._cuda.cudaGetLastError()
            raise
        try:
            graph = self.call("cudaStreamEndCapture", self.stream)
            try:
                return self.call("cudaGraphInstantiateWithFlags", graph, 0)
            finally:
                self.call("cudaGraphDestroy", graph)
        except (RuntimeError, MemoryError):
            self._cuda.cudaGetLastError()  # so that the next call does not report it again
            raise

    def launch(self, graph: Any) -> None:
        """Queue a graph that ``capture`` returned."""
        self.call("cudaGraphLaunch", graph, self.stream)

    def destroy(self, graph: Any) -> None:
        """Free a graph that ``capture`` returned, after it has run."""
        self.wait()
        self.call("cudaGraphExecDestroy", graph)


@cache
def device() -> Device:
    """Return the device of this process. Raises UserError if there is no GPU."""
    gpu = find_gpu()
    if isinstance(gpu, str):
        raise UserError(
            f"a TensorRT engine cannot be executed here | {gpu} "
            "| run it where there is a GPU, or compile for --target onnxruntime"
        )
    return Device()


class TrtBuffer:
    """A tensor on the GPU. Its memory returns to the pool when the last buffer that uses it is gone."""

    def __init__(
        self, home: Device, shape: Sequence[int], dtype: str, owner: TrtBuffer | None = None
    ) -> None:
        self._home, self._owner = home, owner
        self.shape, self.dtype = tuple(shape), dtype
        self.address: int = owner.address if owner else home.take(self.nbytes)
        self.on_host = False

    def __del__(self) -> None:
        if getattr(self, "address", 0) and self._owner is None:
            self._home.give(self.address)

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return int(np.prod(self.shape, dtype=np.int64)) * np.dtype(self.dtype).itemsize

    def head(self, rows: int) -> TrtBuffer:
        """Return the first ``rows`` along axis 1 as a buffer over the same memory. Raises ValueError."""
        one, length, *rest = self.shape
        if one != 1 or not 0 < rows <= length:
            raise ValueError(f"no first {rows} rows of a buffer of the shape {self.shape}")
        return TrtBuffer(self._home, (one, rows, *rest), self.dtype, self._owner or self)

    def numpy(self) -> np.ndarray:
        """Return a copy of the content on the host."""
        array = np.empty(self.shape, self.dtype)
        self._home.download(array, self.address)
        return array

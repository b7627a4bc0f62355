"""CUDA's runtime on host memory: work waits until the stream is synchronized, and freed memory is poisoned.

It is stricter than a GPU, where most faults go unnoticed: each ``AssertionError`` names one.
"""

from __future__ import annotations

import ctypes
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np

ALIGNED = 256
"""Bytes to which cudaMalloc aligns."""

STREAM = 7
NO_MEMORY, NO_DRIVER, IN_CAPTURE, INVALIDATED = 2, 35, 900, 901
FRESH, FREED = 0xFF, 0xDB  # what memory holds before it is written, and after it is freed
_KINDS = ("cudaMemcpyHostToDevice", "cudaMemcpyDeviceToHost", "cudaMemcpyDeviceToDevice")
_TEXT = {
    NO_MEMORY: b"out of memory",
    NO_DRIVER: b"CUDA driver version is insufficient for CUDA runtime version",
}

Work = Callable[[], None]


class Names:
    """An enumeration of CUDA whose members are the numbers from 1 on."""

    def __init__(self, *names: str) -> None:
        self.names = names

    def __getattr__(self, name: str) -> int:
        if name not in self.names:
            raise AttributeError(name)
        return 1 + self.names.index(name)


@dataclass
class Block:
    """Memory of the device."""

    array: np.ndarray
    size: int


class StatusError(Exception):
    """The status that a function returns in place of a result."""


class Cuda:
    """The functions of cuda-python's ``runtime`` that are used.

    ``size``: bytes of the device. ``calls`` counts by name. ``copied`` has direction and bytes of each copy.
    ``fail`` makes functions fail.
    """

    cudaError_t = SimpleNamespace(cudaErrorMemoryAllocation=NO_MEMORY)  # noqa: N815, CUDA's names
    cudaMemcpyKind = Names(*_KINDS)  # noqa: N815
    cudaStreamCaptureMode = Names("cudaStreamCaptureModeThreadLocal")  # noqa: N815

    def __init__(
        self, size: int = 1 << 30, sm: int = 89, name: str = "Double", integrated: bool = False
    ) -> None:
        self.size, self.used, self.sm, self.name, self.integrated = size, 0, sm, name, integrated
        self.calls: Counter[str] = Counter()
        self.copied: list[tuple[str, int]] = []
        self.memory: dict[int, Block] = {}
        self.graphs: dict[int, list[Work]] = {}
        self._freed: list[np.ndarray] = []
        self._queue: list[Work] = []
        self._captured: list[Work] | None = None
        self._invalid = False
        self._faults: dict[str, list[int]] = {}
        self._handles = 100

    def fail(self, name: str, status: int, times: int = 1) -> None:
        """Make the next ``times`` calls of ``name`` return ``status``."""
        self._faults.setdefault(name, []).extend([status] * times)

    def __getattr__(self, name: str) -> Callable[..., tuple[Any, ...]]:
        if not name.startswith("cuda") or not hasattr(type(self), f"_{name}"):
            raise AttributeError(name)

        def call(*arguments: Any) -> tuple[Any, ...]:
            self.calls[name] += 1
            if self._faults.get(name):
                self._captured = None if name == "cudaStreamEndCapture" else self._captured
                return self._faults[name].pop(0), None
            try:
                found = getattr(self, f"_{name}")(*arguments)
            except StatusError as status:
                return status.args[0], None
            return (0, *found) if isinstance(found, tuple) else (0,) if found is None else (0, found)

        return call

    # What the doubles of engines use

    def enqueue(self, work: Work) -> None:
        """Queue ``work`` on the stream, or record it if the stream is captured."""
        (self._queue if self._captured is None else self._captured).append(work)

    def owns(self, address: int, size: int) -> bool:
        """True if these bytes lie in one allocation that is not freed."""
        return any(start <= address and address + size <= start + b.size for start, b in self.memory.items())

    def waiting(self) -> int:
        """Return the number of pieces of work that wait."""
        return len(self._queue)

    # The functions

    def _cudaGetDeviceCount(self) -> int:  # noqa: N802
        return 1

    def _cudaDriverGetVersion(self) -> int:  # noqa: N802
        return 13000

    def _cudaRuntimeGetVersion(self) -> int:  # noqa: N802
        return 13000

    def _cudaGetDeviceProperties(self, number: int) -> Any:  # noqa: N802
        return SimpleNamespace(
            name=self.name.encode(),
            major=self.sm // 10,
            minor=self.sm % 10,
            totalGlobalMem=self.size,
            integrated=int(self.integrated),
        )

    def _cudaDeviceGetAttribute(self, attribute: int, number: int) -> int:  # noqa: N802
        return {18: int(self.integrated), 75: self.sm // 10, 76: self.sm % 10}[attribute]

    def _cudaGetErrorString(self, status: int) -> bytes:  # noqa: N802
        return _TEXT.get(int(status), b"error %d" % status)

    def _cudaGetLastError(self) -> None:  # noqa: N802
        return None

    def _cudaMemGetInfo(self) -> tuple[int, int]:  # noqa: N802
        return self.size - self.used, self.size

    def _cudaMalloc(self, size: int) -> int:  # noqa: N802
        self._outside_capture()
        if self.used + size > self.size:
            raise StatusError(NO_MEMORY)
        array = np.full(size + ALIGNED, FRESH, np.uint8)
        address = array.ctypes.data + -array.ctypes.data % ALIGNED
        self.memory[address] = Block(array, size)
        self.used += size
        return address

    def _cudaFree(self, address: int) -> None:  # noqa: N802
        self._outside_capture()
        assert address in self.memory, "freed twice, or never allocated"
        self._run()  # cudaFree waits for the device
        block = self.memory.pop(address)
        block.array[:] = FREED
        self._freed.append(block.array)  # never given out again, so that its address stays poisoned
        self.used -= block.size

    def _cudaStreamCreate(self) -> int:  # noqa: N802
        return STREAM

    def _cudaStreamSynchronize(self, stream: int) -> None:  # noqa: N802
        self._on(stream)
        self._outside_capture()
        self._run()

    def _cudaMemsetAsync(self, to: int, value: int, size: int, stream: int) -> None:  # noqa: N802
        self._on(stream)
        self._device(to, size)
        self.enqueue(lambda: self._device(to, size) and ctypes.memset(to, value, size))

    def _cudaMemcpyAsync(self, to: int, source: int, size: int, kind: int, stream: int) -> None:  # noqa: N802
        self._cudaMemcpy2DAsync(to, size, source, size, size, 1, kind, stream)

    def _cudaMemcpy2DAsync(  # noqa: N802
        self, to: int, pitch: int, source: int, step: int, width: int, height: int, kind: int, stream: int
    ) -> None:
        self._on(stream)
        name = _KINDS[int(kind) - 1]
        self.copied.append((name, width * height))
        ends = name.removeprefix("cudaMemcpy").split("To")
        spans = {
            "source": (source, step * (height - 1) + width),
            "target": (to, pitch * (height - 1) + width),
        }
        sides = dict(zip(spans, ends, strict=True))

        def check() -> bool:
            for side, place in sides.items():
                assert self.owns(*spans[side]) == (place == "Device"), f"{name}: {side} is not on the {place}"
            return True

        check()
        before = ctypes.string_at(*spans["source"]) if ends[0] == "Host" else None

        def copy() -> None:
            check()
            assert before in (None, ctypes.string_at(*spans["source"])), (
                "the host memory of a queued copy has changed"
            )
            for row in range(height):
                ctypes.memmove(to + row * pitch, source + row * step, width)

        self.enqueue(copy)

    def _cudaStreamBeginCapture(self, stream: int, mode: int) -> None:  # noqa: N802
        self._on(stream)
        assert self._captured is None
        self._captured, self._invalid = [], False

    def _cudaStreamEndCapture(self, stream: int) -> int:  # noqa: N802
        found, self._captured = self._captured, None
        assert found is not None, "no capture has begun"
        if self._invalid:
            raise StatusError(INVALIDATED)
        return self._graph(found)

    def _cudaGraphInstantiateWithFlags(self, graph: int, flags: int) -> int:  # noqa: N802
        return self._graph(self.graphs[graph])

    def _cudaGraphLaunch(self, graph: int, stream: int) -> None:  # noqa: N802
        self._on(stream)
        self._queue.extend(self.graphs[graph])

    def _cudaGraphDestroy(self, graph: int) -> None:  # noqa: N802
        del self.graphs[graph]

    def _cudaGraphExecDestroy(self, graph: int) -> None:  # noqa: N802
        assert not any(work in self._queue for work in self.graphs[graph]), "destroyed while it is queued"
        del self.graphs[graph]

    def _graph(self, work: list[Work]) -> int:
        self._handles += 1
        self.graphs[self._handles] = work
        return self._handles

    def _on(self, stream: int) -> None:
        assert int(stream) == STREAM, f"no such stream: {stream}"

    def _device(self, address: int, size: int) -> bool:
        assert self.owns(address, size), f"{size} bytes at {address:#x} are not on the device"
        return True

    def _outside_capture(self) -> None:
        """End with a status if the stream is captured: these functions make the capture void."""
        if self._captured is not None:
            self._invalid = True
            raise StatusError(IN_CAPTURE)

    def _run(self) -> None:
        waiting, self._queue = self._queue, []
        for work in waiting:
            work()

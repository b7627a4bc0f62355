"""CUDA and an engine of TensorRT that stand in for the real ones in host memory."""

from __future__ import annotations

import ctypes
from collections import Counter
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np

from foveate.engines.spec import Symbol

ROWS, CACHE, HEADS, WIDTH = Symbol("tokens", 1, 4, 8), 8, 2, 3


PAST = 1, HEADS, CACHE, WIDTH


class Names:
    def __getattr__(self, name: str) -> str:
        return name


class Cuda:
    """The functions of CUDA's runtime that are used, on host memory.

    What is captured runs when its graph is launched.
    """

    cudaError_t = SimpleNamespace(cudaErrorMemoryAllocation=2)  # noqa: N815, CUDA's name
    cudaMemcpyKind = cudaStreamCaptureMode = Names()  # noqa: N815

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()
        self.memory: dict[int, np.ndarray] = {}
        self.captured: list[Callable[[], None]] | None = None
        self.copied: list[tuple[str, int]] = []  # directions and bytes

    def __getattr__(self, name: str) -> Callable[..., tuple[Any, ...]]:
        def call(*arguments: Any) -> tuple[Any, ...]:
            self.calls[name] += 1
            found = getattr(self, f"_{name}", lambda *rest: None)(*arguments)
            return (0,) if found is None else (0, found)

        if not name.startswith("cuda"):
            raise AttributeError(name)
        return call

    def _cudaStreamCreate(self) -> int:  # noqa: N802
        return 7

    def _cudaMalloc(self, size: int) -> int:  # noqa: N802
        block = np.full(size, 255, np.uint8)
        self.memory[block.ctypes.data] = block
        return block.ctypes.data

    def _cudaFree(self, address: int) -> None:  # noqa: N802
        del self.memory[address]

    def _cudaMemcpyAsync(self, to: int, source: int, size: int, kind: str, stream: int) -> None:  # noqa: N802
        self.copied.append((kind, size))
        ctypes.memmove(to, source, size)

    def _cudaMemcpy2DAsync(  # noqa: N802
        self, to: int, pitch: int, source: int, step: int, width: int, height: int, *rest: Any
    ) -> None:
        for row in range(height):
            ctypes.memmove(to + row * pitch, source + row * step, width)

    def _cudaMemsetAsync(self, to: int, value: int, size: int, stream: int) -> None:  # noqa: N802
        ctypes.memset(to, value, size)

    def _cudaStreamBeginCapture(self, *rest: Any) -> None:  # noqa: N802
        self.captured = []

    def _cudaStreamEndCapture(self, stream: int) -> list[Callable[[], None]]:  # noqa: N802
        found, self.captured = self.captured, None
        return found

    def _cudaGraphInstantiateWithFlags(self, graph: Any, flags: int) -> Any:  # noqa: N802
        return graph

    def _cudaGraphLaunch(self, graph: list[Callable[[], None]], stream: int) -> None:  # noqa: N802
        for work in graph:
            work()


class Context:
    """Writes the rows that it is given, plus one, to the cache, and answers the sum of the cache."""

    def __init__(self, engine: Plan) -> None:
        self.engine, self.shapes, self.places, self.runs = engine, {}, {}, 0

    def set_optimization_profile_async(self, profile: int, stream: int) -> bool:
        self.profile = profile
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.shapes[name] = shape
        return name != self.engine.refuses

    def set_tensor_address(self, name: str, address: int) -> None:
        self.places[name] = address

    def update_device_memory_size_for_shapes(self) -> int:
        """Grow with the rows. All shapes must be known. TensorRT answers 0 if there was an error."""
        assert set(self.shapes) == {"rows", "write_index", "past.0.key"}
        self.engine.asked += 1
        self.needed = 0 if self.engine.lost else self.engine.scratch_per_row * self.shapes["rows"][1]
        return self.needed

    def set_device_memory(self, address: int, size: int) -> None:
        worst = self.engine.get_device_memory_size_for_profile_v2(self.profile)
        assert size >= (self.needed or worst), "less scratch memory than the shapes need"
        self.lent = address, size

    def infer_shapes(self) -> list[str]:
        return []

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return (1,) if name == "total" else (1, HEADS, self.shapes["rows"][1], WIDTH)

    def execute_async_v3(self, stream: int) -> bool:
        assert stream == 7
        shapes, places, (scratch, size) = dict(self.shapes), dict(self.places), self.lent

        def work() -> None:
            assert self.engine.cuda.memory[scratch].size >= size, "its scratch memory was freed"
            self.engine.scratch_used.append(size)
            self.compute(shapes, places)

        if self.engine.cuda.captured is not None:
            self.engine.cuda.captured.append(work)
        else:
            work()
        return True

    def compute(self, shapes: dict[str, tuple[int, ...]], places: dict[str, int]) -> None:
        self.runs += 1
        rows = at(places["rows"], shapes["rows"], np.float32)
        start = int(at(places["write_index"], (1,), np.int64)[0])
        past = at(places["past.0.key"], PAST, np.float32)
        new = at(places["present.0.key"], self.get_tensor_shape("new"), np.float32)
        if places["present.0.key"] == places["past.0.key"]:
            new = past[:, :, start : start + rows.shape[1]]
        new[:] = rows[:, None] + 1
        at(places["total"], (1,), np.float32)[0] = past.sum()


class Plan:
    """Two profiles, as of a language model. ``refuses``: an input whose shape is not taken."""

    num_optimization_profiles, scratch_per_row = 2, 100

    def __init__(
        self, cuda: Cuda, hosted: tuple[str, ...] = (), refuses: str | None = None, lost: bool = False
    ) -> None:
        self.cuda, self.hosted, self.refuses, self.lost = cuda, hosted, refuses, lost
        self.contexts: list[Context] = []
        self.asked = 0  # questions for the size of the scratch memory
        self.scratch_used: list[int] = []  # bytes lent to each run

    def get_device_memory_size_for_profile_v2(self, profile: int) -> int:
        return self.scratch_per_row * (ROWS.max if profile == 0 else 1)

    def create_execution_context(self, strategy: str) -> Context:
        assert strategy == "USER_MANAGED"
        self.contexts.append(Context(self))
        return self.contexts[-1]

    def get_tensor_location(self, name: str) -> str:
        return "HOST" if name in self.hosted else "DEVICE"


def at(address: int, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    return np.frombuffer((ctypes.c_char * size).from_address(address), dtype).reshape(shape)


TRT = SimpleNamespace(
    ExecutionContextAllocationStrategy=SimpleNamespace(USER_MANAGED="USER_MANAGED"),
    TensorLocation=SimpleNamespace(HOST="HOST"),
)

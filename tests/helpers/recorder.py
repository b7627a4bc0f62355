"""An engine that records what it was fed, for tests of the stages around engines."""

from __future__ import annotations

from typing import Any

import numpy as np

from foveate.engines.engine import resolve
from foveate.engines.spec import GraphSpec


class HostBuffer:
    """A Buffer in NumPy."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array
        self.shape, self.dtype, self.nbytes = array.shape, str(array.dtype), array.nbytes
        self.on_host = True

    def numpy(self) -> np.ndarray:
        return self.array


class Recorder:
    """An Engine that keeps what it was fed; ``answer`` makes its outputs."""

    def __init__(self, spec: GraphSpec, answer: Any = None) -> None:
        self.spec, self.answer, self.fed = spec, answer, []

    def allocate(self, name: str, sizes: Any, content: np.ndarray | None = None) -> HostBuffer:
        array = np.zeros(resolve(self.spec, name, sizes), np.float32)
        if content is not None:
            array[tuple(map(slice, content.shape))] = content
        return HostBuffer(array)

    def run(self, feeds: Any) -> dict[str, HostBuffer]:
        self.fed.append(feeds)
        return {name: HostBuffer(value) for name, value in self.answer(feeds).items()}

"""The execution contexts of an engine: one per optimization profile.

TensorRT-RTX compiles kernels when it first runs, and captures CUDA graphs by itself. Its kernels are kept in
a file beside the plan, so that the next start is faster.
"""

from __future__ import annotations

import contextlib
import weakref
from pathlib import Path
from types import ModuleType
from typing import Any

from foveate.engines.errors import NoMemoryError, RefusedError, UserError
from foveate.engines.trt import timing_cache
from foveate.engines.trt.cuda.device import Device

__all__ = ["Contexts", "Prepared"]


class Prepared:
    """An execution context of one profile, with the scratch memory in bytes that it was found to need.

    ``worst`` is what the largest shapes of its profile need.
    """

    def __init__(self, context: Any, worst: int) -> None:
        self.context, self.worst = context, worst
        self.shapes: Any = None
        self.scratch = worst


class Contexts:
    """The contexts of ``engine`` in the order of its profiles. All use the scratch memory of ``home``.

    ``kernels`` is the file for the kernels of TensorRT-RTX. ``cuda_graphs`` has TensorRT-RTX replay what it
    runs. Raises UserError if a context cannot be made.
    """

    def __init__(
        self, trt: ModuleType, engine: Any, home: Device, name: str, kernels: Path, cuda_graphs: bool
    ) -> None:
        self._name, self._home = name, home
        settings = trt.ExecutionContextAllocationStrategy.USER_MANAGED
        self.own_graphs = hasattr(trt, "CudaGraphStrategy")
        """True if TensorRT captures CUDA graphs itself, and a stream must not be captured around it."""
        if self.own_graphs:
            settings = self._configured(trt, engine, settings, kernels, cuda_graphs)
        self._all = [
            self._made(engine, settings, profile) for profile in range(engine.num_optimization_profiles)
        ]

    def __len__(self) -> int:
        return len(self._all)

    def __getitem__(self, profile: int) -> Prepared:
        return self._all[profile]

    def _configured(
        self, trt: ModuleType, engine: Any, strategy: Any, kernels: Path, cuda_graphs: bool
    ) -> Any:
        """Return the settings of TensorRT-RTX's contexts, with the kernels of earlier runs."""
        runtime_config = engine.create_runtime_config()
        if runtime_config is None:
            raise self._refusal("no runtime configuration")
        runtime_config.set_execution_context_allocation_strategy(strategy)
        modes = trt.CudaGraphStrategy
        runtime_config.cuda_graph_strategy = modes.WHOLE_GRAPH_CAPTURE if cuda_graphs else modes.DISABLED
        runtime_cache = runtime_config.create_runtime_cache()
        known = timing_cache.content(kernels)
        if known and not runtime_cache.deserialize(known):  # of another GPU, driver or version
            runtime_cache, known = runtime_config.create_runtime_cache(), None
        if runtime_config.set_runtime_cache(runtime_cache):
            weakref.finalize(self, _save, runtime_cache, kernels, known)
        return runtime_config

    def _made(self, engine: Any, settings: Any, profile: int) -> Prepared:
        context = engine.create_execution_context(settings)
        if context is None and self._home.release():  # it wants memory
            context = engine.create_execution_context(settings)
        if context is None:
            raise self._refusal("no context, as when memory runs out", NoMemoryError)
        if not context.set_optimization_profile_async(profile, self._home.stream):
            raise self._refusal(f"profile {profile} is refused")
        return Prepared(context, engine.get_device_memory_size_for_profile_v2(profile))

    def _refusal(self, why: str, kind: type[UserError] = RefusedError) -> UserError:
        return kind(
            f"TensorRT cannot run {self._name} | {why} | close other programs, or compile again with --force"
        )


def _save(runtime_cache: Any, file: Path, known: bytes | None) -> None:
    """Write the kernels that were compiled meanwhile. A folder that is read-only or gone has none."""
    content = bytes(runtime_cache.serialize())
    if content != known and file.parent.is_dir():
        with contextlib.suppress(OSError):
            timing_cache.put(content, file)

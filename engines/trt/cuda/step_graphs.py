"""Decode steps as CUDA graphs: a step that was seen before is replayed in one launch."""

from __future__ import annotations

import warnings
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any

from foveate.engines.trt.cuda.device import Device, TrtBuffer

__all__ = ["StepGraphs"]

_MOST = 4  # per engine: steps alternate between a few sets of buffers


class StepGraphs:
    """The captured steps of one engine.

    A graph holds the addresses that it was captured with. It is destroyed when the kv cache of its
    conversation is gone, and when ``_MOST`` newer ones were used.
    """

    def __init__(self, home: Device, name: str) -> None:
        self._home, self._name = home, name
        self._ready: OrderedDict[Hashable, Any] = OrderedDict()  # the one used last is at the end
        self._gone: list[Hashable] = []  # keys whose conversation is over
        self._works = True
        weakref.finalize(self, _destroy_all, home, self._ready).atexit = False

    def __len__(self) -> int:
        return len(self._ready)

    def run(self, key: Hashable, launch: Callable[[], None], owner: TrtBuffer) -> None:
        """Queue what ``launch`` queues. ``key`` are all addresses and shapes in it.

        ``owner`` is a buffer of the conversation that the step belongs to. If a step cannot be captured, a
        warning says so, and this and all later ones run without graphs.
        """
        if graph := self._ready.get(key):
            self._ready.move_to_end(key)
            self._home.launch(graph)
            return
        launch()  # once without capture: TensorRT initializes lazily, which must happen before
        if not self._works:
            return
        try:
            graph = self._home.capture(launch)
        except (RuntimeError, MemoryError) as error:
            self._works = False
            warnings.warn(
                f"{self._name}: decode steps cannot be captured as CUDA graphs, and run without ({error})",
                RuntimeWarning,
                stacklevel=2,
            )
            return
        while len(self._ready) >= _MOST:
            self._destroy(next(iter(self._ready)))
        self._ready[key] = graph
        weakref.finalize(owner, self._gone.append, key).atexit = False

    def sweep(self) -> None:
        """Destroy the graphs of conversations that are over. Called before each run of the engine."""
        while self._gone:
            self._destroy(self._gone.pop())

    def _destroy(self, key: Hashable) -> None:
        if graph := self._ready.pop(key, None):
            self._home.destroy(graph)


def _destroy_all(home: Device, graphs: dict[Hashable, Any]) -> None:
    while graphs:
        home.destroy(graphs.popitem()[1])

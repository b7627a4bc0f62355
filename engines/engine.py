"""What the runtime asks of an engine, and of the module that makes it.

An engine is one compiled graph: named arrays or buffers go in, named buffers come out. Buffers live where the
engine computes, so what one graph gives the next one takes without a way through the host.

A backend is a module of this package, imported only when its target is named, or, where one serves several targets, what
its ``backend(target)`` gives::

    DIALECTS: tuple[str, ...]                        # dialects of a bundle that it takes, best first
    machine(options) -> dict[str, Any]               # what a compiled engine is bound to; equal or refused
    key(machine) -> str                              # a directory's name for it, e.g. onnxruntime-1.31.1-cpu-avx2
    compile_graph(source, folder, spec, options)     # an ONNX file into what ``load`` maps -> remedies in words
    load(folder, spec, options) -> Engine            # spec is typed: no FLOAT placeholder

and where it has them::

    cannot_run() -> str | None                       # why this machine may compile and not execute
    remedies: tuple[Remedy, ...]                     # what to try, in this order, when the self-test fails
    refused_dialect(name) -> str | None              # why this version does not take a dialect | the remedy
    describe(folder, graph) -> dict[str, Any]        # facts of a compiled graph for `inspect`
    refusal(kinds, machine) -> str | None            # why weights of these precisions have no engine for that machine
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol

import numpy as np

from foveate.engines.spec import GraphSpec, Symbol

if TYPE_CHECKING:
    from foveate.engines.row_gather import Rows

__all__ = ["Buffer", "Engine", "Feed", "check_feeds", "host", "resolve"]


class Buffer(Protocol):
    """A tensor where the engine computes."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> str:
        """NumPy's name of it."""
        ...

    @property
    def nbytes(self) -> int:
        """Allocated bytes."""
        ...

    @property
    def on_host(self) -> bool:
        """Whether ``numpy`` copies nothing."""
        ...

    def head(self, rows: int) -> Buffer:
        """The first ``rows`` along axis 1 of a buffer whose axis 0 has one entry: the same memory, nothing is copied."""
        ...

    def numpy(self) -> np.ndarray:
        """The content on the host: a view where the memory is the host's, else a copy. Do not write to it."""
        ...


Feed = np.ndarray | Buffer


def host(feed: Feed) -> np.ndarray:
    """Its content on the host."""
    return feed if isinstance(feed, np.ndarray) else feed.numpy()


class Engine(Protocol):
    """A compiled graph. Not safe for concurrent use."""

    @property
    def spec(self) -> GraphSpec:
        """Typed, and as compiled: a symbol that this engine has settled is an ``int`` here."""
        ...

    def allocate(self, name: str, sizes: Mapping[str, int], content: np.ndarray | None = None) -> Buffer:
        """A zeroed buffer for the input ``name``, its symbols set by ``sizes``; ``content`` goes to its start.

        ``content`` has the rank of the input and at most its extent in every dimension.
        """
        ...

    def gather(self, name: str, rows: Rows) -> Feed:
        """``rows [R,...]`` as the input ``name [1,R,...]``, copied where the engine computes: what lies there already does not
        pass through the host.

        Rows on the host are cast to the input's dtype. Raises ValueError where rows on the device have another one.
        """
        ...

    def run(self, feeds: Mapping[str, Feed]) -> dict[str, Buffer]:
        """Every output by name. An output that the spec writes in place is the buffer that was fed.

        Raises ValueError when the feeds do not fit the spec, before anything is launched.
        """
        ...


def check_feeds(spec: GraphSpec, feeds: Mapping[str, Feed]) -> None:
    """Raise ValueError when shapes, dtypes or the values of shape inputs do not fit ``spec``."""
    spec.check(
        {name: tuple(feed.shape) for name, feed in feeds.items()},
        {name: str(feed.dtype) for name, feed in feeds.items()},
    )
    for tensor in spec.inputs:
        if tensor.value is None:
            continue
        got = int(host(feeds[tensor.name]))
        if not tensor.value.min <= got <= tensor.value.max:
            raise ValueError(
                f"{spec.name}: input {tensor.name} is {got} | expected {tensor.value.min}..{tensor.value.max}"
            )


def resolve(spec: GraphSpec, name: str, sizes: Mapping[str, int]) -> tuple[int, ...]:
    """The shape of the input ``name`` with its symbols set by ``sizes``."""
    return tuple(sizes[d.name] if isinstance(d, Symbol) else d for d in spec.input(name).shape)

"""Weights as the graphs of a form read them: their parts, the rounding of inputs, and their initializers.

``Reading`` gives the values that a graph computes with, for the reference answers. ``pending`` and ``attach``
connect a traced graph with what ``weight_store.Store`` wrote.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import onnx_ir as ir
import torch

from foveate.calib import schemes
from foveate.calib.graph_values import dtype_of, shape_of
from foveate.calib.schemes.graph_site import Site
from foveate.calib.schemes.quantized import Form, PartKind, PartName
from foveate.calib.statistics import InputStatistics, Statistics
from foveate.engines.errors import UserError
from foveate.export.bundling.weight_store import Store
from foveate.export.lowering.common_passes import cast_behind

__all__ = ["Reading", "Rounding", "attach", "parts_of", "pending", "require_ranges"]

Rounding = Callable[[torch.Tensor], torch.Tensor]
"""A function that rounds the input [..., K] of a product as the graph does, with all rows in one call."""


@dataclass(frozen=True)
class Reading:
    """The effective weights of the graphs of a ``form``.

    ``encodings`` are those of the weights, by name. Without a form, weights are read in the best stored form
    and inputs are not rounded. ``pruning`` holds separate weights for the in-LLM pruners, or None to use
    these.
    """

    store: Store
    form: Form | None = None
    encodings: Mapping[str, str] = field(default_factory=dict)
    statistics: Statistics | None = None
    pruning: Reading | None = None

    def __contains__(self, name: str) -> bool:
        return name in self.store

    def get(self, name: str) -> torch.Tensor:
        """Return a weight in float32 (``Store.get``). The graph need not use the weight."""
        if self.form is None or name not in self.encodings:
            return self.store.get(name)
        return self.store.get(name, parts_of(self.encodings[name], self.form))

    def rounding(self, name: str) -> Rounding | None:
        """Return the rounding of the inputs of products with the weight ``name``; None if there is none."""
        encoding, form = self.encodings.get(name), self.form
        if encoding is None or form is None or not _rounds(encoding):
            return None
        seen = _inputs(self.statistics, name)
        return lambda x: schemes.load(encoding).rounded(x, form, seen)

    @property
    def rounds(self) -> bool:
        """True if some graph rounds the inputs of its products."""
        return any(map(_rounds, self.encodings.values())) or (
            self.pruning is not None and self.pruning.rounds
        )


def _rounds(encoding: str) -> bool:
    return encoding in schemes.names() and schemes.load(encoding).rounds_activations


def pending(
    model: ir.Model, choose: Callable[[str, tuple[int, ...]], str | None]
) -> Iterator[tuple[str, str]]:
    """Yield (name, encoding) for the weights of a traced graph.

    The encoding is the choice of ``choose``, or the dtype.
    """
    for name, value in model.graph.initializers.items():
        if value.const_value is None:
            yield name, choose(name, shape_of(value).numpy()) or dtype_of(value).numpy().name


def parts_of(encoding: str, form: Form) -> tuple[PartName, ...]:
    """Return the parts that a graph of that form reads of a weight in that encoding."""
    if encoding in schemes.names():
        return schemes.load(encoding).needs(form)
    return (PartName(PartKind.VALUES, encoding),)


def require_ranges(needs: Iterable[tuple[str, str]], form: Form, statistics: Statistics | None) -> None:
    """Raise UserError if a graph of that form needs calibrated ranges that are missing."""
    for name, encoding in needs:
        if not form.dynamic and _rounds(encoding) and _inputs(statistics, name) is None:
            seen = "calibration has not seen it" if statistics else "there was no calibration"
            raise UserError(
                f"no range is known of what {name} reads "
                f"| {encoding} rounds it with a range fixed at build time, and {seen} "
                "| calibrate the part that it is in, leave that part in the compute dtype, "
                "or build --dialects ort"
            )


def attach(
    model: ir.Model,
    store: Store,
    encodings: Iterable[tuple[str, str]],
    form: Form,
    statistics: Statistics | None = None,
) -> None:
    """Give each pending initializer its external data. Schemes replace it with their own nodes.

    ``require_ranges`` has checked that the ranges which they need are known.
    """
    graph = model.graph
    shared: dict[tuple[ir.Value, Hashable], ir.Value] = {}
    for name, encoding in encodings:
        value = graph.initializers[name]
        if encoding not in schemes.names():
            tensor = store.tensor(name, PartName(PartKind.VALUES, encoding))
            assert tensor is not None, f"{name} was not written"
            value.const_value = tensor
            if tensor.dtype != value.dtype:  # a widened graph, see write_graphs.widen
                cast_behind(graph, value, dtype_of(value))
                value.type = ir.TensorType(tensor.dtype)
            continue

        def find(part: PartName, name: str = name) -> ir.Value | None:
            tensor = store.tensor(name, part)
            return None if tensor is None else _initializer(graph, f"{name}.{part.label}", tensor)

        site = Site(graph, value, form, find, _inputs(statistics, name), shared)
        schemes.load(encoding).place(site)
        del graph.initializers[name]


def _inputs(statistics: Statistics | None, name: str) -> InputStatistics | None:
    try:
        return statistics.inputs(name) if statistics else None
    except KeyError:
        return None


def _initializer(graph: ir.Graph, name: str, tensor: ir.ExternalTensor) -> ir.Value:
    if name not in graph.initializers:
        value = ir.Value(name=name, shape=tensor.shape, type=ir.TensorType(tensor.dtype), const_value=tensor)
        graph.register_initializer(value)
    return graph.initializers[name]

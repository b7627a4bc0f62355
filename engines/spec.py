"""The inputs and outputs of a graph: names, dtypes and shapes, stated in one place.

A ``GraphSpec`` is made when a graph is assembled. The ONNX exporter reads its dynamic axes from it, the
engines their optimization profiles and buffers, and the runtime its input checks.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

__all__ = ["FLOAT", "Dim", "GraphSpec", "Symbol", "TensorSpec"]

FLOAT = "float"
"""Placeholder for the graph's compute dtype. ``GraphSpec.typed`` replaces it, per dialect."""


@dataclass(frozen=True)
class Symbol:
    """A named dimension, or the value of a scalar input, with the range that an engine is built for."""

    name: str
    min: int
    opt: int
    max: int

    def __post_init__(self) -> None:
        if not 0 <= self.min <= self.opt <= self.max:
            raise ValueError(
                f"{self.name}: wanted 0 <= min <= opt <= max, got {self.min}, {self.opt}, {self.max}"
            )


Dim = int | Symbol


@dataclass(frozen=True)
class TensorSpec:
    """One input or output.

    ``dtype`` is a NumPy dtype name or ``FLOAT``. ``value`` is set for inputs whose *value* determines shapes
    inside the graph (``keep``). Its range goes into the optimization profile of that shape tensor.
    """

    name: str
    dtype: str
    shape: tuple[Dim, ...] = ()
    value: Symbol | None = None

    def extent(self, which: str) -> tuple[int, ...]:
        """Return the shape with every symbol at its ``which``: "min", "opt" or "max"."""
        return tuple(d if isinstance(d, int) else getattr(d, which) for d in self.shape)

    def describe(self) -> str:
        """Return name, dtype and shape as text for messages, e.g. ``ids int64[1, tokens:1..4096]``."""
        dims = (str(d) if isinstance(d, int) else f"{d.name}:{d.min}..{d.max}" for d in self.shape)
        return f"{self.name} {self.dtype}[{', '.join(dims)}]"


@dataclass(frozen=True)
class GraphSpec:
    """A graph's interface.

    ``in_place`` maps an output to the input whose memory it is written to. If both have the same shape, the
    graph itself writes there. If the output is shorter (``appending``), the engine copies it to row
    ``write_index`` of axis 2 of the input.
    """

    name: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    in_place: tuple[tuple[str, str], ...] = ()

    def input(self, name: str) -> TensorSpec:
        """Return the input ``name``. Raises KeyError."""
        return _by_name(self.inputs, name, f"input of {self.name}")

    def output(self, name: str) -> TensorSpec:
        """Return the output ``name``. Raises KeyError."""
        return _by_name(self.outputs, name, f"output of {self.name}")

    def typed(self, dtype: str) -> GraphSpec:
        """Return this spec with ``FLOAT`` replaced by ``dtype`` ("float32" or "float16")."""

        def settle(tensors: tuple[TensorSpec, ...]) -> tuple[TensorSpec, ...]:
            return tuple(replace(t, dtype=dtype) if t.dtype == FLOAT else t for t in tensors)

        return replace(self, inputs=settle(self.inputs), outputs=settle(self.outputs))

    @property
    def rows(self) -> Dim:
        """Number of rows that a graph with a kv cache computes at once: axis 1 of its first input."""
        return self.inputs[0].shape[1]

    @property
    def most_rows(self) -> int:
        """Largest number of ``rows``."""
        return self.rows.max if isinstance(self.rows, Symbol) else self.rows

    def with_most_rows(self, most: int) -> GraphSpec:
        """Return this spec, of a graph with a kv cache, with at most ``most`` rows at once."""

        def bound(dim: Dim) -> Dim:
            if isinstance(dim, int) or dim != self.rows:
                return dim
            high = min(dim.max, most)
            return Symbol(dim.name, min(dim.min, high), min(dim.opt, high), high)

        def settle(tensors: tuple[TensorSpec, ...]) -> tuple[TensorSpec, ...]:
            return tuple(replace(tensor, shape=tuple(map(bound, tensor.shape))) for tensor in tensors)

        return replace(self, inputs=settle(self.inputs), outputs=settle(self.outputs))

    def appending(self) -> GraphSpec:
        """Return this spec for a graph whose cache outputs hold only the new rows."""
        rows, into = self.rows, dict(self.in_place)

        def shorter(tensor: TensorSpec) -> TensorSpec:
            batch, heads, _, width = tensor.shape
            return replace(tensor, shape=(batch, heads, rows, width))

        return replace(self, outputs=tuple(shorter(t) if t.name in into else t for t in self.outputs))

    @property
    def appends(self) -> bool:
        """True if a cache output holds only the new rows. The engine then copies them into the cache."""
        return any(self.output(out).shape != self.input(past).shape for out, past in self.in_place)

    def check(self, shapes: dict[str, tuple[int, ...]], dtypes: dict[str, str]) -> None:
        """Raise ValueError if inputs of these shapes and dtypes do not fit this spec.

        A symbol must have the same size in every input.
        """
        bound: dict[str, tuple[int, str]] = {}
        for spec in self.inputs:
            if spec.name not in shapes:
                raise ValueError(f"{self.name}: input {spec.name} is missing | expected {spec.describe()}")
            got, dtype = shapes[spec.name], dtypes[spec.name]
            if dtype != spec.dtype:
                raise ValueError(f"{self.name}: input {spec.name} is {dtype} | expected {spec.describe()}")
            if len(got) != len(spec.shape):
                raise ValueError(
                    f"{self.name}: input {spec.name} has shape {got} | expected {spec.describe()}"
                )
            for size, dim in zip(got, spec.shape, strict=True):
                low, high = (dim, dim) if isinstance(dim, int) else (dim.min, dim.max)
                if not low <= size <= high:
                    raise ValueError(
                        f"{self.name}: input {spec.name} has shape {got} | expected {spec.describe()}"
                    )
                if isinstance(dim, Symbol):
                    known, owner = bound.setdefault(dim.name, (size, spec.name))
                    if known != size:
                        raise ValueError(
                            f"{self.name}: inputs disagree on {dim.name} "
                            f"| {owner} says {known}, {spec.name} says {size}"
                        )
        unknown = shapes.keys() - {spec.name for spec in self.inputs}
        if unknown:
            raise ValueError(f"{self.name}: no such input | got {sorted(unknown)}")

    def to_json(self) -> dict[str, Any]:
        """Return the spec as bundle.json holds it."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> GraphSpec:
        """Return the spec that ``to_json`` wrote."""

        def tensors(items: list[dict[str, Any]]) -> tuple[TensorSpec, ...]:
            return tuple(
                TensorSpec(
                    item["name"],
                    item["dtype"],
                    tuple(d if isinstance(d, int) else Symbol(**d) for d in item["shape"]),
                    Symbol(**item["value"]) if item["value"] else None,
                )
                for item in items
            )

        in_place = tuple((out, into) for out, into in data["in_place"])
        return cls(data["name"], tensors(data["inputs"]), tensors(data["outputs"]), in_place)


def _by_name(tensors: tuple[TensorSpec, ...], name: str, what: str) -> TensorSpec:
    for tensor in tensors:
        if tensor.name == name:
            return tensor
    raise KeyError(f"{what}: {name}")

"""What a graph takes and gives: names, dtypes and shapes, written once and read by everybody.

A ``GraphSpec`` is made when a graph is assembled. The ONNX exporter reads its dynamic axes from it, the
engines their optimization profiles and buffers, the runtime its input checks; nothing repeats it.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

__all__ = ["FLOAT", "Dim", "GraphSpec", "Symbol", "TensorSpec"]

FLOAT = "float"
"""Placeholder dtype of tensors in the graph's compute dtype; ``GraphSpec.typed`` settles it per dialect."""


@dataclass(frozen=True)
class Symbol:
    """A named dimension (or the value of a scalar input) with the range an engine is built for."""

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

    ``dtype`` is a NumPy dtype name or ``FLOAT``. ``value`` is set for inputs whose *value* shapes the graph
    (``keep``): the range goes into the optimization profile of a shape tensor.
    """

    name: str
    dtype: str
    shape: tuple[Dim, ...] = ()
    value: Symbol | None = None

    def extent(self, which: str) -> tuple[int, ...]:
        """The shape with every symbol at its ``min``, ``opt`` or ``max``."""
        return tuple(d if isinstance(d, int) else getattr(d, which) for d in self.shape)

    def describe(self) -> str:
        dims = (str(d) if isinstance(d, int) else f"{d.name}:{d.min}..{d.max}" for d in self.shape)
        return f"{self.name} {self.dtype}[{', '.join(dims)}]"


@dataclass(frozen=True)
class GraphSpec:
    """A graph's interface. ``in_place`` maps an output to the input whose memory it is written to: by the graph itself, or,
    where the output is shorter (``appending``), by the engine, which copies it to row ``write_index`` of axis 2."""

    name: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    in_place: tuple[tuple[str, str], ...] = ()

    def input(self, name: str) -> TensorSpec:
        return _by_name(self.inputs, name, f"input of {self.name}")

    def output(self, name: str) -> TensorSpec:
        return _by_name(self.outputs, name, f"output of {self.name}")

    def typed(self, dtype: str) -> GraphSpec:
        """The same spec with ``FLOAT`` replaced by ``dtype`` ("float32" or "float16")."""

        def settle(tensors: tuple[TensorSpec, ...]) -> tuple[TensorSpec, ...]:
            return tuple(replace(t, dtype=dtype) if t.dtype == FLOAT else t for t in tensors)

        return replace(self, inputs=settle(self.inputs), outputs=settle(self.outputs))

    def appending(self) -> GraphSpec:
        """The same spec for a graph that gives out the new rows of its caches alone."""
        rows, into = self.inputs[0].shape[1], dict(self.in_place)

        def shorter(tensor: TensorSpec) -> TensorSpec:
            batch, heads, _, width = tensor.shape
            return replace(tensor, shape=(batch, heads, rows, width))

        return replace(self, outputs=tuple(shorter(t) if t.name in into else t for t in self.outputs))

    @property
    def appends(self) -> bool:
        return any(self.output(out).shape != self.input(past).shape for out, past in self.in_place)

    def check(self, shapes: dict[str, tuple[int, ...]], dtypes: dict[str, str]) -> None:
        """Raise ValueError when inputs of these shapes and dtypes do not fit; symbols must agree with each other."""
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
                            f"{self.name}: inputs disagree on {dim.name} | {owner} says {known}, {spec.name} says {size}"
                        )
        unknown = shapes.keys() - {spec.name for spec in self.inputs}
        if unknown:
            raise ValueError(f"{self.name}: no such input | got {sorted(unknown)}")

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> GraphSpec:
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

"""Weights on their way from the checkpoint into external data: one tensor at a time, quantized in passing.

``Store.write`` streams every tensor that the traced graphs ask for, once, in each part that some dialect needs; equal
bytes are shared between dialects. ``attach`` then points a graph's initializers at them. A weight's encoding is the name
of a scheme (``calib/schemes``), or the dtype in which it is stored as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np
import onnx_ir as ir
import torch

from foveate.calib import schemes
from foveate.calib.schemes.scheme import Form, Part, Quantized, Site, unpack
from foveate.calib.statistics import InputStatistics, Statistics
from foveate.engines.errors import UserError
from foveate.export.lowering.common_passes import cast_behind
from foveate.export.spec import Weights

__all__ = [
    "Reading",
    "Rounding",
    "Store",
    "attach",
    "packed",
    "parts_of",
    "pending",
    "require_finite",
    "require_ranges",
]

_ALIGNMENT = 4096  # a page: engines map the file instead of reading it
_VALUES = ("int4", "int8", "int7", "float8_e4m3fn")


@dataclass(frozen=True)
class _Place:
    file: str  # relative to the bundle
    offset: int
    length: int
    shape: tuple[int, ...]
    dtype: ir.DataType


def packed(weights: Weights) -> Mapping[str, Callable[[], Quantized]]:
    """The matrices that a checkpoint holds quantized already, by name: they are read as they are. Most have none."""
    return getattr(weights, "packed", {})


class Store:
    """External data under ``root/weights``. Reads back what it wrote, so it is itself a source of Weights.

    A store whose ``source`` is a store holds other forms of the same numbers: what it did not write is the other one's.
    """

    def __init__(self, root: Path, source: Weights) -> None:
        self.root, self.source = root, source
        self._places: dict[tuple[str, str], _Place] = {}
        self._asked: set[tuple[str, str]] = set()  # a weight may lack a part
        self._files: dict[str, BinaryIO] = {}
        (root / "weights").mkdir(exist_ok=True)

    def missing(self, name: str, parts: Collection[str]) -> set[str]:
        """Those of ``parts`` that nobody has asked for yet of the weight ``name``."""
        left = {part for part in parts if (name, part) not in self._asked}
        return self.source.missing(name, left) if isinstance(self.source, Store) else left

    def write(
        self, wanted: Mapping[tuple[str, str], set[str]], progress: Callable[[str], None] = lambda name: None
    ) -> None:
        """Write the parts of every tensor of ``wanted`` ((name, encoding) -> parts); ``progress`` is told each name when it
        is done."""
        try:
            for (name, encoding), names in wanted.items():
                found = self._encode(name, encoding)
                for part in sorted(names):
                    self._asked.add((name, part))
                    self._append(name, part, found(part))
                progress(name)
        finally:
            for file in self._files.values():
                file.close()
            self._files.clear()

    def _encode(self, name: str, encoding: str) -> Callable[[str], Part | None]:
        if encoding in schemes.names():
            read = packed(self.source).get(name)
            return (read() if read else self._quantize(name, encoding)).part
        array = self.source.get(name).to(getattr(torch, encoding)).contiguous().numpy()
        return lambda part: Part(array, ir.DataType.from_numpy(array.dtype), array.shape)

    def _quantize(self, name: str, scheme: str) -> Quantized:
        return schemes.load(scheme).quantize(self.source.get(name).float().numpy())

    def _append(self, name: str, part: str, content: Part | None) -> None:
        if content is None:
            return
        path = f"weights/{name.partition('.')[0]}.{part.rpartition('.')[2]}.data"
        if path not in self._files:
            self._files[path] = (self.root / path).open("ab")
        file, data = self._files[path], np.ascontiguousarray(content.data)
        require_finite(name, data)
        file.write(b"\0" * (-file.tell() % _ALIGNMENT))
        self._places[name, part] = _Place(path, file.tell(), data.nbytes, content.shape, content.dtype)
        file.write(data.view(np.uint8).data)

    def tensor(self, name: str, part: str) -> ir.ExternalTensor | None:
        """None where the weight has no such part."""
        if (name, part) not in self._places:
            return self.source.tensor(name, part) if isinstance(self.source, Store) else None
        place = self._places[name, part]
        return ir.ExternalTensor(
            place.file,
            place.offset,
            place.length,
            place.dtype,
            shape=ir.Shape(place.shape),
            name=name,
            base_dir=self.root,
        )

    def __contains__(self, name: str) -> bool:
        return any(known == name for known, _ in self._places)

    def get(self, name: str, parts: Collection[str] = ()) -> torch.Tensor:
        """float32, as the graphs compute with it: dequantized, widened from what was stored, or, where that is float32, the
        file itself, mapped. Of what ``parts`` hold; without any, of the best that there is."""
        found = {
            part: place
            for (known, part), place in self._places.items()
            if known == name and (not parts or part in parts)
        }
        if not found and isinstance(self.source, Store):
            return self.source.get(name, parts)
        values = next((part for part in _VALUES if part in found), None)
        if values is None:
            part = next((part for part in ("float32", "float16") if part in found), None)
            if part is None:
                raise KeyError(name)
            return torch.from_numpy(self._read(found[part]).astype("float32", copy=False))

        def read(*kinds: str) -> np.ndarray | None:
            part = next((part for part in sorted(found) if part.partition(".")[0] in kinds), None)
            return None if part is None else self._read(found[part])

        scales = np.atleast_2d(read("scale", "channel", "channel7").astype(np.float32))
        zeros, shift = read("zero"), read("shift")
        if zeros is None and shift is not None:
            zeros = np.rint(-shift.astype(np.float32) / scales).astype(np.int8)
        weight = Quantized(self._read(found[values]), scales, zeros, read("order"))
        return torch.from_numpy(weight.dequantize())

    def _read(self, place: _Place) -> np.ndarray:
        raw = np.memmap(self.root / place.file, np.uint8, "c", place.offset, (place.length,))
        return unpack(raw, place.dtype, place.shape)


Rounding = Callable[[torch.Tensor], torch.Tensor]
"""What a product reads of an input [..., K] that is computed at once."""


@dataclass(frozen=True)
class Reading:
    """What the graphs of a ``form`` compute with. ``encodings``: of their weights, by name. Without a form, whatever is stored, and
    inputs as they are. ``pruning``: what pruners inside the language model compute with where that is something else."""

    store: Store
    form: Form | None = None
    encodings: Mapping[str, str] = field(default_factory=dict)
    statistics: Statistics | None = None
    pruning: Reading | None = None

    def __contains__(self, name: str) -> bool:
        return name in self.store

    def get(self, name: str) -> torch.Tensor:
        """See ``Store.get``. A module may have weights that its graph does not read."""
        read = self.form is not None and name in self.encodings
        return self.store.get(name, parts_of(self.encodings[name], self.form) if read else ())

    def rounding(self, name: str) -> Rounding | None:
        """What the products with the weight ``name`` make of their input; None: nothing."""
        encoding = self.encodings.get(name)
        if encoding is None or not _rounds(encoding):
            return None
        seen = _inputs(self.statistics, name)
        return lambda x: schemes.load(encoding).rounded(x, self.form, seen)

    @property
    def rounds(self) -> bool:
        return any(map(_rounds, self.encodings.values())) or (
            self.pruning is not None and self.pruning.rounds
        )


def _rounds(encoding: str) -> bool:
    return encoding in schemes.names() and schemes.load(encoding).ROUNDS_ACTIVATIONS


def pending(
    model: ir.Model, choose: Callable[[str, tuple[int, ...]], str | None]
) -> Iterator[tuple[str, str]]:
    """The (name, encoding) pairs of the traced graph's weights: the scheme that ``choose`` names, or the graph's dtype."""
    for name, value in model.graph.initializers.items():
        if value.const_value is None:
            yield name, choose(name, tuple(value.shape.numpy())) or value.dtype.numpy().name


def parts_of(encoding: str, form: Form) -> tuple[str, ...]:
    """What a graph of that form reads of a weight in that encoding."""
    return schemes.load(encoding).needs(form) if encoding in schemes.names() else (encoding,)


def require_finite(name: str, stored: np.ndarray) -> None:
    """Raise UserError when the weight ``name``, in the form in which it is stored, holds NaN or infinity."""
    if stored.dtype.kind == "f" and not np.isfinite(stored).all():
        raise UserError(
            f"{name} cannot be stored in {stored.dtype} | it holds NaN, infinity, or numbers beyond "
            f"{np.finfo(stored.dtype).max:g} | with numbers that large, build with --precision fp32 --dialects ort; else the "
            "checkpoint is damaged"
        )


def require_ranges(needs: Iterable[tuple[str, str]], form: Form, statistics: Statistics | None) -> None:
    """Raise UserError when a graph of that form wants calibrated ranges that there are not."""
    for name, encoding in needs:
        if not form.dynamic and _rounds(encoding) and _inputs(statistics, name) is None:
            seen = "calibration has not seen it" if statistics else "there was no calibration"
            raise UserError(
                f"no range is known of what {name} reads | {encoding} rounds it with a range fixed at build time, and {seen} "
                "| calibrate the part that it is in, leave that part in the compute dtype, or build --dialects ort"
            )


def attach(
    model: ir.Model,
    store: Store,
    encodings: Iterable[tuple[str, str]],
    form: Form,
    statistics: Statistics | None = None,
) -> None:
    """Give each pending initializer its external data; schemes put theirs in its place (see ``require_ranges``)."""
    graph, shared = model.graph, {}
    for name, encoding in encodings:
        value = graph.initializers[name]
        if encoding not in schemes.names():
            value.const_value = store.tensor(name, encoding)
            if (
                stored_as := value.const_value.dtype
            ) != value.dtype:  # a graph that was widened, see write.widen
                cast_behind(graph, value, value.dtype)
                value.type = ir.TensorType(stored_as)
            continue

        def stored(part: str, name: str = name) -> ir.Value | None:
            tensor = store.tensor(name, part)
            return None if tensor is None else _initializer(graph, f"{name}.{part.partition('.')[0]}", tensor)

        site = Site(graph, value, form, stored, _inputs(statistics, name), shared)
        schemes.load(encoding).place(site)
        del graph.initializers[name]


def _inputs(statistics: Statistics | None, name: str) -> InputStatistics | None:
    try:
        return statistics and statistics.inputs(name)
    except KeyError:
        return None


def _initializer(graph: ir.Graph, name: str, tensor: ir.ExternalTensor) -> ir.Value:
    if name not in graph.initializers:
        value = ir.Value(name=name, shape=tensor.shape, type=ir.TensorType(tensor.dtype), const_value=tensor)
        graph.register_initializer(value)
    return graph.initializers[name]

"""Writes weights from the checkpoint to the bundle's external data, one at a time, and quantizes them.

``Store.write`` writes every tensor that the traced graphs need, once, in each part that some dialect needs.
Dialects share equal parts. ``attach`` then points a graph's initializers to them. The encoding of a weight is
the name of a scheme (``calib/schemes``), or a dtype if the weight is not quantized.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np
import onnx_ir as ir
import torch

from foveate.calib import schemes
from foveate.calib.graph_values import dtype_of, shape_of
from foveate.calib.schemes.graph_site import Site
from foveate.calib.schemes.quantized import Form, Part, PartKind, PartName, Quantized, unpack
from foveate.calib.statistics import InputStatistics, Statistics
from foveate.engines.errors import UserError
from foveate.export.checkpoints.layered_weights import packed
from foveate.export.lowering.common_passes import cast_behind
from foveate.export.spec import Weights

__all__ = [
    "Reading",
    "Rounding",
    "Store",
    "attach",
    "parts_of",
    "pending",
    "require_finite",
    "require_ranges",
]

_ALIGNMENT = 4096  # one page, since engines map the file into memory
_QUANTIZED = tuple(PartName(PartKind.VALUES, dtype) for dtype in ("int4", "int8", "int7", "float8_e4m3fn"))
_PLAIN = tuple(PartName(PartKind.VALUES, dtype) for dtype in ("float32", "float16"))


@dataclass(frozen=True)
class _Place:
    file: str  # relative to the bundle
    offset: int
    length: int
    shape: tuple[int, ...]
    dtype: ir.DataType


class Store:
    """External data under ``root/weights``. It reads back what it wrote, so it is itself a source of Weights.

    A store can be layered over another store: weights that it has not written are read from the lower one.
    """

    def __init__(self, root: Path, source: Weights) -> None:
        self.root, self.source = root, source
        self._places: dict[tuple[str, PartName], _Place] = {}
        self._asked: set[tuple[str, PartName]] = (
            set()
        )  # parts that were written or that the weight does not have
        self._files: dict[str, BinaryIO] = {}
        (root / "weights").mkdir(exist_ok=True)

    def missing(self, name: str, parts: Collection[PartName]) -> set[PartName]:
        """Return those of ``parts`` that were not requested yet for the weight ``name``."""
        left = {part for part in parts if (name, part) not in self._asked}
        return self.source.missing(name, left) if isinstance(self.source, Store) else left

    def write(
        self,
        wanted: Mapping[tuple[str, str], set[PartName]],
        progress: Callable[[str], None] = lambda name: None,
    ) -> None:
        """Write the parts of every tensor in ``wanted``, which maps (name, encoding) to parts.

        ``progress`` is called with each name when its parts are written. Raises UserError for NaN and
        infinity.
        """
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

    def _encode(self, name: str, encoding: str) -> Callable[[PartName], Part | None]:
        if encoding in schemes.names():
            read = packed(self.source).get(name)
            return (read() if read else self._quantize(name, encoding)).part
        array = self.source.get(name).to(getattr(torch, encoding)).contiguous().numpy()
        return lambda part: Part(array, ir.DataType.from_numpy(array.dtype), array.shape)

    def _quantize(self, name: str, scheme: str) -> Quantized:
        return schemes.load(scheme).quantize(self.source.get(name).float().numpy())

    def _append(self, name: str, part: PartName, content: Part | None) -> None:
        if content is None:
            return
        path = f"weights/{name.partition('.')[0]}.{part.dtype}.data"
        if path not in self._files:
            self._files[path] = (self.root / path).open("ab")
        file, data = self._files[path], np.ascontiguousarray(content.data)
        require_finite(name, data)
        file.write(b"\0" * (-file.tell() % _ALIGNMENT))
        self._places[name, part] = _Place(path, file.tell(), data.nbytes, content.shape, content.dtype)
        file.write(data.view(np.uint8).data)

    def tensor(self, name: str, part: PartName) -> ir.ExternalTensor | None:
        """Return the external tensor of a part, or None if the weight has no such part."""
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

    def get(self, name: str, parts: Collection[PartName] = ()) -> torch.Tensor:
        """Return the weight in float32 as the graphs compute with it.

        It is read from ``parts``, or else from the best stored form. Quantized weights are dequantized,
        float16 is widened, and float32 is the mapped file itself. Raises
        KeyError for an unknown weight.
        """
        found = {
            part: place
            for (known, part), place in self._places.items()
            if known == name and (not parts or part in parts)
        }
        if not found and isinstance(self.source, Store):
            return self.source.get(name, parts)
        values = next((part for part in _QUANTIZED if part in found), None)
        if values is None:
            plain = next((part for part in _PLAIN if part in found), None)
            if plain is None:
                raise KeyError(name)
            return torch.from_numpy(self._read(found[plain]).astype("float32", copy=False))

        def read(*kinds: PartKind) -> np.ndarray | None:
            part = next((part for part in sorted(found) if part.kind in kinds), None)
            return None if part is None else self._read(found[part])

        scales = read(PartKind.SCALES, PartKind.COLUMN_SCALES, PartKind.NARROW_COLUMN_SCALES)
        assert scales is not None, f"{name} has quantized values and no scales"
        scales = np.atleast_2d(scales.astype(np.float32))
        zeros, shift = read(PartKind.ZEROS), read(PartKind.SHIFTS)
        if zeros is None and shift is not None:
            zeros = np.rint(-shift.astype(np.float32) / scales).astype(np.int8)
        weight = Quantized(self._read(found[values]), scales, zeros, read(PartKind.ORDER))
        return torch.from_numpy(weight.dequantize())

    def _read(self, place: _Place) -> np.ndarray:
        raw = np.memmap(self.root / place.file, np.uint8, "c", place.offset, (place.length,))
        return unpack(raw, place.dtype, place.shape)


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


def require_finite(name: str, stored: np.ndarray) -> None:
    """Raise UserError if the weight ``name`` holds NaN or infinity in its ``stored`` form."""
    if stored.dtype.kind == "f" and not np.isfinite(stored).all():
        raise UserError(
            f"{name} cannot be stored in {stored.dtype} | it holds NaN, infinity, or numbers beyond "
            f"{np.finfo(stored.dtype).max:g} "
            "| with numbers that large, build with --precision fp32 --dialects ort; "
            "else the checkpoint is damaged"
        )


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

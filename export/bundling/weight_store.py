"""Writes weights from the checkpoint to the bundle's external data, one at a time, and quantizes them.

``Store.write`` writes every tensor that the traced graphs need, once, in each part that some dialect needs.
Dialects share equal parts. ``graph_weights.attach`` then points a graph's initializers to them. The encoding
of a weight is the name of a scheme (``calib/schemes``), or a dtype if the weight is not quantized.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import onnx_ir as ir
import torch

from foveate.calib import schemes
from foveate.calib.schemes.quantized import Part, PartKind, PartName, Quantized, unpack
from foveate.engines.errors import UserError
from foveate.export.checkpoints.layered_weights import packed
from foveate.export.spec import Weights

__all__ = ["Store", "require_finite"]

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


def require_finite(name: str, stored: np.ndarray) -> None:
    """Raise UserError if the weight ``name`` holds NaN or infinity in its ``stored`` form."""
    if stored.dtype.kind == "f" and not np.isfinite(stored).all():
        raise UserError(
            f"{name} cannot be stored in {stored.dtype} | it holds NaN, infinity, or numbers beyond "
            f"{np.finfo(stored.dtype).max:g} "
            "| with numbers that large, build with --precision fp32 --dialects ort; "
            "else the checkpoint is damaged"
        )

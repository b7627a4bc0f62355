"""Weights on their way from the checkpoint into external data: one tensor at a time, quantized in passing.

``Store.write`` streams every tensor that the traced graphs ask for, once, in each encoding that some dialect
needs; equal bytes are shared between dialects. ``attach`` then points a graph's initializers at them.
Encodings: "float32", "float16" (or an integer dtype's name as it is), "int4".
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import onnx_ir as ir
import torch

from foveate.calib.schemes import int4
from foveate.export.parts import Weights

__all__ = ["Store", "attach", "pending"]

_ALIGNMENT = 4096  # a page: engines map the file instead of reading it


@dataclass(frozen=True)
class _Place:
    file: str  # relative to the bundle
    offset: int
    length: int
    shape: tuple[int, ...]
    dtype: ir.DataType


class Store:
    """External data under ``root/weights``. Reads back what it wrote, so it is itself a source of Weights."""

    def __init__(self, root: Path, source: Weights) -> None:
        self.root, self.source = root, source
        self._places: dict[tuple[str, str], _Place] = {}
        self._files: dict[str, BinaryIO] = {}
        (root / "weights").mkdir()

    def write(self, wanted: dict[str, set[str]], progress: Callable[[str], None] = lambda name: None) -> None:
        """Write every tensor of ``wanted`` (name -> encodings); ``progress`` is told each name when it is done."""
        try:
            for name, encodings in wanted.items():
                tensor = self.source.get(name)
                for encoding in sorted(encodings):
                    self._encode(name, tensor, encoding)
                progress(name)
        finally:
            for file in self._files.values():
                file.close()
            self._files.clear()

    def _encode(self, name: str, tensor: torch.Tensor, encoding: str) -> None:
        graph = name.partition(".")[0]
        if encoding == "int4":
            packed, scales = int4.quantize(tensor.float().numpy())
            self._append(name, "int4", f"{graph}.int4", packed, ir.DataType.INT4, tuple(tensor.shape))
            for dtype in ("float32", "float16"):
                self._append(f"{name}.scale", dtype, f"{graph}.{dtype}", scales.astype(dtype))
        else:
            array = tensor.to(getattr(torch, encoding)).contiguous().numpy()
            self._append(name, encoding, f"{graph}.{encoding}", array)

    def _append(
        self,
        name: str,
        encoding: str,
        stem: str,
        array: np.ndarray,
        dtype: ir.DataType | None = None,
        shape: tuple[int, ...] | None = None,
    ) -> None:
        path = f"weights/{stem}.data"
        if path not in self._files:
            self._files[path] = (self.root / path).open("ab")
        file = self._files[path]
        file.write(b"\0" * (-file.tell() % _ALIGNMENT))
        self._places[name, encoding] = _Place(
            path,
            file.tell(),
            array.nbytes,
            shape or array.shape,
            dtype or ir.DataType.from_numpy(array.dtype),
        )
        file.write(np.ascontiguousarray(array).data)

    def tensor(self, name: str, encoding: str) -> ir.ExternalTensor:
        place = self._places[name, encoding]
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

    def get(self, name: str) -> torch.Tensor:
        """float32, as the graphs compute with it: dequantized, or widened from what was stored."""
        if (name, "int4") in self._places:
            place = self._places[name, "int4"]
            scales = self._read(self._places[f"{name}.scale", "float32"], np.float32)
            return torch.from_numpy(int4.dequantize(self._read(place, np.uint8), scales, place.shape))
        for encoding in ("float32", "float16"):
            if (name, encoding) in self._places:
                return torch.from_numpy(
                    self._read(self._places[name, encoding], np.dtype(encoding)).astype("float32")
                )
        raise KeyError(name)

    def _read(self, place: _Place, dtype: np.typing.DTypeLike) -> np.ndarray:
        raw = np.memmap(self.root / place.file, np.uint8, "r", place.offset, (place.length,)).view(dtype)
        return raw if place.dtype == ir.DataType.INT4 else raw.reshape(place.shape)


def pending(model: ir.Model, quantized: Callable[[str, tuple[int, ...]], bool]) -> Iterator[tuple[str, str]]:
    """The (name, encoding) pairs that the traced graph's weights need; ``quantized`` picks those in int4."""
    for name, value in model.graph.initializers.items():
        if value.const_value is None:
            four_bit = quantized(name, tuple(value.shape.numpy()))
            yield name, "int4" if four_bit else value.dtype.numpy().name


def attach(model: ir.Model, store: Store, encodings: Iterable[tuple[str, str]]) -> None:
    """Give each pending initializer its external data; int4 ones become ``DequantizeLinear`` of theirs."""
    graph = model.graph
    for name, encoding in encodings:
        value = graph.initializers[name]
        if encoding != "int4":
            value.const_value = store.tensor(name, encoding)
            continue
        packed = _initializer(graph, f"{name}.int4", store.tensor(name, "int4"))
        scale_dtype = value.dtype.numpy().name
        scale = _initializer(graph, f"{name}.scale", store.tensor(f"{name}.scale", scale_dtype))
        block = value.shape[0] // scale.shape[0]
        node = ir.node(
            "DequantizeLinear", [packed, scale], {"axis": 0, "block_size": block}, name=f"{name}.dequantize"
        )
        node.outputs[0].name, node.outputs[0].dtype, node.outputs[0].shape = (
            f"{name}.value",
            value.dtype,
            value.shape,
        )
        graph.insert_before(graph[0], node)
        value.replace_all_uses_with(node.outputs[0])
        del graph.initializers[name]


def _initializer(graph: ir.Graph, name: str, tensor: ir.ExternalTensor) -> ir.Value:
    value = ir.Value(name=name, shape=tensor.shape, type=ir.TensorType(tensor.dtype), const_value=tensor)
    graph.register_initializer(value)
    return value

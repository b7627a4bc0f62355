"""A checkpoint on disk, as transformers saves it: config, files, tensors read one at a time.

Which tensors there are and their shapes is known from the files' headers, so a checkpoint that is cut short or does not
fit is refused before any long work.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import safetensors
import torch

from foveate.calib.schemes.base import Quantized
from foveate.engines.errors import UserError
from foveate.export.parts import Weights
from foveate.export.quantized import Packing, packing

__all__ = ["Directory", "Entry", "Source"]

_DTYPES = ("F32", "F16", "BF16")
_INDEX, _SINGLE, _PICKLED = "model.safetensors.index.json", "model.safetensors", "pytorch_model.bin"


@dataclass(frozen=True)
class Entry:
    """A tensor that a model needs: its shape here, its possible names in a checkpoint (the first that is there
    counts), and whether it is stored the other way round there."""

    shape: tuple[int, ...]
    names: tuple[str, ...]
    transposed: bool = False

    @property
    def stored_shape(self) -> tuple[int, ...]:
        return self.shape[::-1] if self.transposed else self.shape


class Source(Protocol):
    """A checkpoint: where it is (``label``), which it is (``revision``), whether its weights are real
    (``load_format`` "auto" or "dummy"), its ``config.json``, other files and tensors."""

    label: str
    revision: str
    load_format: str
    config: dict[str, Any]

    def json(self, name: str) -> dict[str, Any] | None:
        """A JSON file of the checkpoint; None where it has none."""
        ...

    def file(self, name: str) -> Path | None:
        """The path of a file of the checkpoint; None where it has none."""
        ...

    def names(self) -> frozenset[str]:
        """The tensors that the checkpoint stores, by the names that an ``Entry`` uses; a dummy stores none. Raises
        UserError."""
        ...

    def weights(self, entries: Mapping[str, Entry]) -> Weights:
        """The tensors that ``entries`` name. Raises UserError when one is missing or has another shape."""
        ...


class Directory:
    """The Source that is a directory. ``remedy`` is what users are told to do about missing or damaged files."""

    load_format = "auto"

    def __init__(
        self,
        path: Path,
        label: str | None = None,
        revision: str = "local",
        remedy: str = "copy or download it again",
    ) -> None:
        """Raises UserError when ``path`` holds no ``config.json``."""
        self.path, self.label, self.revision, self.remedy = path, label or str(path), revision, remedy
        config = self.json("config.json")
        if config is None:
            raise UserError(
                f"{self.label} is no checkpoint | it has no config.json, expected a directory in Hugging Face's "
                "format | give the directory that holds config.json"
            )
        self.config = config

    def json(self, name: str) -> dict[str, Any] | None:
        path = self.file(name)
        if path is None:
            return None
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise self._damaged(name, f"not JSON ({error})") from error
        if not isinstance(found, dict):
            raise self._damaged(name, f"a JSON {type(found).__name__}, expected an object")
        return found

    def file(self, name: str) -> Path | None:
        path = self.path / name
        return path if path.is_file() else None

    def names(self) -> frozenset[str]:
        return frozenset(self._tensors())

    def weights(self, entries: Mapping[str, Entry]) -> Weights:
        tensors = self._tensors()
        packed = self._packed(entries, tensors)
        entries = {name: entry for name, entry in entries.items() if name not in packed}
        places = {name: next((n for n in e.names if n in tensors), None) for name, e in entries.items()}
        missing = [entries[name].names[0] for name, place in places.items() if place is None]
        if missing:
            raise UserError(
                f"{self.label}: tensors are missing | {_some(missing)}; expected what its config.json describes "
                f"| {self.remedy}, or repair config.json"
            )
        misfits = [
            f"{place} is {list(tensors[place].shape)}, expected {list(entries[name].stored_shape)}"
            for name, place in places.items()
            if tensors[place].shape != entries[name].stored_shape
        ]
        if misfits:
            raise UserError(
                f"{self.label}: tensors have other shapes than config.json says | {_some(misfits, '; ')} "
                "| take config and weights from the same checkpoint"
            )
        strange = sorted({tensors[place].dtype for place in places.values()} - set(_DTYPES))
        if strange:
            raise UserError(
                f"{self.label}: these weights are quantized or of another kind | got {', '.join(strange)}, expected "
                f"{', '.join(_DTYPES)} | use the unquantized checkpoint; foveate quantizes it itself"
            )
        return _Stored({name: (tensors[place], entries[name]) for name, place in places.items()}, packed)

    def _packed(self, entries: Mapping[str, Entry], tensors: Mapping[str, _Tensor]) -> dict[str, _Packed]:
        """What the checkpoint holds quantized, by our names."""
        found, form = {}, packing(self.config, self.label)
        for name, entry in entries.items() if form else ():
            for module in (
                there.removesuffix(".weight") for there in entry.names if there.endswith(".weight")
            ):
                if f"{module}.weight" not in tensors and f"{module}.{form.parts[0]}" in tensors:
                    held = {
                        part: tensors[key] for part in form.parts if (key := f"{module}.{part}") in tensors
                    }
                    found[name] = _Packed(form, held, entry.shape, f"{self.label}: {module}", self.remedy)
                    break
        return found

    def _tensors(self) -> dict[str, _Tensor]:
        """Every tensor of the checkpoint by its stored name."""
        if self.file(_INDEX):
            shards = sorted(set(self.json(_INDEX).get("weight_map", {}).values()))
            missing = [shard for shard in shards if not self.file(shard)]
            if missing:
                raise UserError(
                    f"{self.label}: {len(missing)} of {len(shards)} weight files are missing | {_some(missing)} "
                    f"| {self.remedy}"
                )
        else:
            shards = [_SINGLE]
        if shards == [_SINGLE] and not self.file(_SINGLE):
            if self.file(_PICKLED):
                return self._pickled()
            raise UserError(
                f"{self.label} has no weights | expected {_SINGLE} or {_INDEX} with its shards | {self.remedy}, "
                "or use --load-format dummy (random weights)"
            )
        return {name: tensor for shard in shards for name, tensor in self._header(shard).items()}

    def _header(self, shard: str) -> dict[str, _Tensor]:
        """A safetensors file: the header's length in 8 bytes, the header in JSON, the data."""
        path = self.path / shard
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(8)
            length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
            if start == b"version ":
                raise self._damaged(shard, "a Git LFS pointer and not the file itself")
            if not 2 <= length <= size - 8:
                raise self._damaged(shard, f"cut short at {size} bytes")
            try:
                header = json.loads(file.read(length))
                header.pop("__metadata__", None)
                expected = 8 + length + max((each["data_offsets"][1] for each in header.values()), default=0)
                found = {
                    name: _Tensor(path, name, each["dtype"], tuple(each["shape"]))
                    for name, each in header.items()
                }
            except (ValueError, AttributeError, KeyError, TypeError) as error:
                raise self._damaged(shard, "not in safetensors format") from error
        if size != expected:
            raise self._damaged(shard, f"{size} bytes, expected {expected}")
        return found

    def _pickled(self) -> dict[str, _Tensor]:
        """The format before safetensors, in which OpenAI's CLIP checkpoints come; mapped, not read."""
        path = self.path / _PICKLED
        try:
            found = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
        except Exception as error:  # a damaged zip archive or pickle raises whatever its bytes lead to
            raise self._damaged(_PICKLED, "not a readable PyTorch archive") from error
        names = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
        return {
            name: _Tensor(path, name, names.get(value.dtype, str(value.dtype)), tuple(value.shape), value)
            for name, value in found.items()
        }

    def _damaged(self, name: str, got: str) -> UserError:
        return UserError(f"{self.label}: {name} is damaged | it is {got} | {self.remedy}")


@dataclass(frozen=True)
class _Tensor:
    file: Path
    name: str
    dtype: str
    shape: tuple[int, ...]
    value: torch.Tensor | None = None


@dataclass(frozen=True)
class _Packed:
    """A quantized module's tensors. ``shape [K,N]`` is that of its matrix; ``label`` names it to users."""

    form: Packing
    tensors: dict[str, _Tensor]
    shape: tuple[int, ...]
    label: str
    remedy: str

    def read(self, tensor: Callable[[_Tensor], torch.Tensor]) -> Quantized:
        arrays = {part: tensor(each) for part, each in self.tensors.items()}
        try:
            found = self.form.read(
                {part: (x.float() if x.is_floating_point() else x).numpy() for part, x in arrays.items()}
            )
            if found.values.shape != self.shape:
                raise ValueError(f"a matrix of {found.values.shape}, expected {self.shape}")
        except (KeyError, ValueError) as error:
            raise UserError(
                f"{self.label} cannot be read as {self.form.name} | it has {error} | {self.remedy}"
            ) from error
        return found


class _Stored:
    """Weights of a Directory. ``packed`` reads those that it holds quantized."""

    def __init__(self, places: dict[str, tuple[_Tensor, Entry]], packed: Mapping[str, _Packed]) -> None:
        self._places = places
        self._files: dict[Path, Any] = {}
        self.packed = {name: partial(each.read, self._read) for name, each in packed.items()}

    def __contains__(self, name: str) -> bool:
        return name in self._places or name in self.packed

    def get(self, name: str) -> torch.Tensor:
        """float32, or float16 where it is stored so."""
        if name in self.packed:
            return torch.from_numpy(self.packed[name]().dequantize())
        tensor, entry = self._places[name]
        value = self._read(tensor)
        dtype = torch.float32 if value.dtype == torch.bfloat16 else value.dtype
        # transposed and widened in one: a second copy of a large head would be gigabytes
        value = value.T if entry.transposed else value
        return value.to(dtype, memory_format=torch.contiguous_format).contiguous()

    def _read(self, tensor: _Tensor) -> torch.Tensor:
        if tensor.value is not None:
            return tensor.value
        if tensor.file not in self._files:
            self._files[tensor.file] = safetensors.safe_open(tensor.file, framework="pt")
        return self._files[tensor.file].get_tensor(tensor.name)


def _some(items: list[str], joint: str = ", ") -> str:
    shown = joint.join(items[:3])
    return shown if len(items) <= 3 else f"{shown} and {len(items) - 3} more"

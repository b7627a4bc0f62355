"""Tensors in files: safetensors and PyTorch archives, whole or in shards.

Names, shapes and dtypes of all are known from the headers; tensors are read one at a time, and one that holds
NaN or infinity is refused when it is.
"""

from __future__ import annotations

import json
import struct
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import torch

from foveate.engines.errors import UserError
from foveate.export.checkpoints.files import INDEX, PICKLED, PICKLED_INDEX, SINGLE

__all__ = ["DTYPES", "Folder", "Reader", "Tensor", "refuse_not_finite", "some"]

DTYPES = ("F32", "F16", "BF16", "F64")
"""Of weights that are not quantized. F64 is narrowed to float32 in reading."""

_PICKLED_DTYPES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.float64: "F64"}


@dataclass(frozen=True)
class Tensor:
    """A tensor of a file, by its ``name`` there; ``value`` where the file is mapped already."""

    file: Path
    name: str
    dtype: str
    shape: tuple[int, ...]
    value: torch.Tensor | None = None


class Folder:
    """A directory with JSON files and tensors. ``label`` names it to users; ``remedy`` is what they are told
    to do about missing or damaged files."""

    def __init__(
        self, path: Path, label: str | None = None, remedy: str = "copy or download it again"
    ) -> None:
        self.path, self.label, self.remedy = path, label or str(path), remedy

    def file(self, name: str) -> Path | None:
        """The path of a file; None where there is none."""
        path = self.path / name
        return path if path.is_file() else None

    def json(self, name: str) -> dict[str, Any] | None:
        """A JSON file in UTF-8, UTF-16 or UTF-32, with or without a byte order mark; None where there is
        none. Raises UserError."""
        path = self.file(name)
        if path is None:
            return None
        try:
            found = json.loads(path.read_bytes())
            json.dumps(
                found, ensure_ascii=False
            ).encode()  # fails for lone surrogates, which no text may hold
        except (ValueError, RecursionError) as error:
            raise self.damaged(name, f"not JSON ({error})") from error
        if not isinstance(found, dict):
            raise self.damaged(name, f"a JSON {type(found).__name__}, expected an object")
        return found

    def damaged(self, name: str, got: str) -> UserError:
        return UserError(f"{self.label}: {name} is damaged | it is {got} | {self.remedy}")

    def weights_file(self) -> str | None:
        """The file that holds the weights, or their index: transformers looks for them in this order. None
        without any."""
        return next((n for n in (SINGLE, INDEX, PICKLED, PICKLED_INDEX) if self.file(n)), None)

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor of the weights by its stored name. Raises UserError."""
        name = self.weights_file()
        if name is None:
            raise UserError(
                f"{self.label} has no weights | expected {SINGLE}, {PICKLED}, or an index ({INDEX}, "
                f"{PICKLED_INDEX}) "
                f"with its shards | {self.remedy}, or use --load-format dummy (random weights)"
            )
        files = self._shards(name) if name in (INDEX, PICKLED_INDEX) else [name]
        return {name: tensor for file in files for name, tensor in self.tensors_of(file).items()}

    def tensors_of(self, name: str) -> dict[str, Tensor]:
        """The tensors of one file, which is there. Raises UserError."""
        return self._header(name) if name.endswith(".safetensors") else self._archive(name)

    def _shards(self, index: str) -> list[str]:
        places = self.json(index).get("weight_map")
        if not isinstance(places, dict) or not all(isinstance(file, str) for file in places.values()):
            raise self.damaged(index, "without a weight_map of tensors to files")
        files = sorted(set(places.values()))
        missing = [file for file in files if not self.file(file)]
        if missing:
            raise UserError(
                f"{self.label}: {len(missing)} of {len(files)} weight files are missing | {some(missing)} "
                f"| {self.remedy}"
            )
        return files

    def _header(self, name: str) -> dict[str, Tensor]:
        """A safetensors file: the header's length in 8 bytes, the header in JSON, the data."""
        path = self.path / name
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(8)
            length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
            if start == b"version ":
                raise self.damaged(name, "a Git LFS pointer and not the file itself")
            if not 2 <= length <= size - 8:
                raise self.damaged(name, f"cut short at {size} bytes")
            try:
                header = json.loads(file.read(length))
                header.pop("__metadata__", None)
                expected = 8 + length + max((each["data_offsets"][1] for each in header.values()), default=0)
                found = {
                    known: Tensor(path, known, each["dtype"], tuple(each["shape"]))
                    for known, each in header.items()
                }
            except (ValueError, AttributeError, KeyError, TypeError) as error:
                raise self.damaged(name, "not in safetensors format") from error
        if size != expected:
            raise self.damaged(name, f"{size} bytes, expected {expected}")
        return found

    def _archive(self, name: str) -> dict[str, Tensor]:
        """PyTorch's format before safetensors. Runs no code; mapped, not read, where the archive is a zip
        file."""
        path = self.path / name
        try:
            found = torch.load(path, map_location="cpu", mmap=zipfile.is_zipfile(path), weights_only=True)
        except Exception as error:  # a damaged zip archive or pickle raises whatever its bytes lead to
            raise self.damaged(name, "not a readable PyTorch archive") from error
        if not isinstance(found, dict):
            raise self.damaged(name, f"an archive of a {type(found).__name__}, expected tensors by name")
        strange = [str(key) for key, value in found.items() if not isinstance(value, torch.Tensor)]
        if strange:
            raise UserError(
                f"{self.label}: {name} holds more than weights | got {some(strange)} beside or around "
                "tensors, "
                "expected tensors by name | it is a training state: save the model with save_pretrained"
            )
        return {
            known: Tensor(
                path, known, _PICKLED_DTYPES.get(value.dtype, str(value.dtype)), tuple(value.shape), value
            )
            for known, value in found.items()
        }


class Reader:
    """Reads tensors, each when it is asked for. ``label`` names the checkpoint to users."""

    def __init__(self, label: str) -> None:
        self._label = label
        self._files: dict[Path, Any] = {}
        self._finite: set[tuple[Path, str]] = set()

    def __call__(self, tensor: Tensor) -> torch.Tensor:
        """The tensor in its dtype, F64 in float32. The memory may be the file's: it is not to be changed.
        Raises UserError for NaN and infinity."""
        value = tensor.value
        if value is None:
            if tensor.file not in self._files:
                self._files[tensor.file] = safetensors.safe_open(tensor.file, framework="pt")
            value = self._files[tensor.file].get_tensor(tensor.name)
        value = value.float() if value.dtype == torch.float64 else value
        key = tensor.file, tensor.name
        if key not in self._finite and value.is_floating_point():
            refuse_not_finite(value, f"{self._label}: {tensor.name}", tensor.file.name)
            self._finite.add(key)
        return value


def refuse_not_finite(value: torch.Tensor, what: str, where: str) -> None:
    """Raise UserError when ``value``, which ``what`` names to users and ``where`` is the place of, holds NaN
    or infinity."""
    if not value.numel():
        return
    low, high = value.aminmax()  # NaN passes through both; far quicker than isfinite
    if low.isfinite() and high.isfinite():
        return
    count = sum(int((~part.isfinite()).sum()) for part in value.reshape(-1).split(1 << 24))
    raise UserError(
        f"{what} holds NaN or infinity | {count} of {value.numel()} values in {where}, expected finite "
        "numbers "
        "| take an earlier checkpoint of the training or another revision, or save it again in bfloat16 or "
        "float32"
    )


def some(items: list[str], joint: str = ", ") -> str:
    """The first three of ``items`` and how many more there are."""
    shown = joint.join(items[:3])
    return shown if len(items) <= 3 else f"{shown} and {len(items) - 3} more"

"""Tensors in files: safetensors and PyTorch archives, whole or in shards.

Names, shapes and dtypes come from the headers. Tensors are read one at a time; a tensor that holds NaN or
infinity is refused when it is read.
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
"""The dtypes of weights that are not quantized. F64 becomes float32 when it is read."""

_PICKLED_DTYPES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.float64: "F64"}


@dataclass(frozen=True)
class Tensor:
    """A tensor in a file, with its ``name`` there. ``value`` is set if the file is already mapped."""

    file: Path
    name: str
    dtype: str
    shape: tuple[int, ...]
    value: torch.Tensor | None = None


class Folder:
    """A directory with JSON files and tensors.

    ``label`` names it to users. ``remedy`` tells them what to do about missing or damaged files.
    """

    def __init__(
        self, path: Path, label: str | None = None, remedy: str = "copy or download it again"
    ) -> None:
        self.path, self.label, self.remedy = path, label or str(path), remedy

    def file(self, name: str) -> Path | None:
        """Return the path of a file, or None if it does not exist."""
        path = self.path / name
        return path if path.is_file() else None

    def json(self, name: str) -> dict[str, Any] | None:
        """Return the object in a JSON file, or None if the file does not exist. Raises UserError.

        The encoding may be UTF-8, UTF-16 or UTF-32, with or without a byte order mark.
        """
        path = self.file(name)
        if path is None:
            return None
        try:
            found = json.loads(path.read_bytes())
            # fails for lone surrogates, which no text may hold
            json.dumps(found, ensure_ascii=False).encode()
        except (ValueError, RecursionError) as error:
            raise self.damaged(name, f"not JSON ({error})") from error
        if not isinstance(found, dict):
            raise self.damaged(name, f"a JSON {type(found).__name__}, expected an object")
        return found

    def damaged(self, name: str, got: str) -> UserError:
        """Return the error for a file that is ``got`` instead of what it should be."""
        return UserError(f"{self.label}: {name} is damaged | it is {got} | {self.remedy}")

    def weights_file(self) -> str | None:
        """Return the name of the weights' file or index, or None. transformers looks in the same order."""
        return next((n for n in (SINGLE, INDEX, PICKLED, PICKLED_INDEX) if self.file(n)), None)

    def tensors(self) -> dict[str, Tensor]:
        """Return every tensor of the weights by its stored name. Raises UserError."""
        name = self.weights_file()
        if name is None:
            raise UserError(
                f"{self.label} has no weights | expected {SINGLE}, {PICKLED}, or an index ({INDEX}, "
                f"{PICKLED_INDEX}) with its shards | {self.remedy}, or use --load-format dummy (random "
                "weights)"
            )
        files = self._shards(name) if name in (INDEX, PICKLED_INDEX) else [name]
        return {name: tensor for file in files for name, tensor in self.tensors_of(file).items()}

    def tensors_of(self, name: str) -> dict[str, Tensor]:
        """Return the tensors of one file, which must exist. Raises UserError."""
        return self._header(name) if name.endswith(".safetensors") else self._archive(name)

    def _shards(self, index: str) -> list[str]:
        places = (self.json(index) or {}).get("weight_map")
        if not isinstance(places, dict) or not all(isinstance(file, str) for file in places.values()):
            raise self.damaged(index, "without a weight_map of tensors to files")
        files = sorted(set(places.values()))
        missing = [file for file in files if not self.file(file)]
        if missing:
            raise UserError(
                f"{self.label}: {len(missing)} of {len(files)} weight files are missing "
                f"| {some(missing)} | {self.remedy}"
            )
        return files

    def _header(self, name: str) -> dict[str, Tensor]:
        """Return the tensors of a safetensors file.

        It holds the header's length in 8 bytes, the header in JSON, and the data.
        """
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
        """Return the tensors of a PyTorch archive, without running code in it. Zip archives are mapped."""
        path = self.path / name
        try:
            found = torch.load(path, map_location="cpu", mmap=zipfile.is_zipfile(path), weights_only=True)
        except Exception as error:  # a damaged zip archive or pickle may raise any exception
            raise self.damaged(name, "not a readable PyTorch archive") from error
        if not isinstance(found, dict):
            raise self.damaged(name, f"an archive of a {type(found).__name__}, expected tensors by name")
        strange = [str(key) for key, value in found.items() if not isinstance(value, torch.Tensor)]
        if strange:
            raise UserError(
                f"{self.label}: {name} holds more than weights | got {some(strange)} beside or around "
                "tensors, expected tensors by name | it is a training state: save the model with "
                "save_pretrained"
            )
        return {
            known: Tensor(
                path, known, _PICKLED_DTYPES.get(value.dtype, str(value.dtype)), tuple(value.shape), value
            )
            for known, value in found.items()
        }


class Reader:
    """Reads tensors one at a time, on request. ``label`` names the checkpoint to users."""

    def __init__(self, label: str) -> None:
        self._label = label
        self._files: dict[Path, Any] = {}
        self._finite: set[tuple[Path, str]] = set()

    def __call__(self, tensor: Tensor) -> torch.Tensor:
        """Return the tensor in its own dtype; F64 becomes float32. Raises UserError for NaN and infinity.

        The caller must not change it: its memory may be the mapped file's.
        """
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
    """Raise UserError when ``value`` holds NaN or infinity.

    ``what`` names it to users, ``where`` names its file.
    """
    if not value.numel():
        return
    low, high = value.aminmax()  # both are NaN if one value is; much faster than isfinite on all values
    if low.isfinite() and high.isfinite():
        return
    count = sum(int((~part.isfinite()).sum()) for part in value.reshape(-1).split(1 << 24))
    raise UserError(
        f"{what} holds NaN or infinity | {count} of {value.numel()} values in {where}, expected finite "
        "numbers | take an earlier checkpoint of the training or another revision, or save it again in "
        "bfloat16 or float32"
    )


def some(items: list[str], joint: str = ", ") -> str:
    """Return the first three ``items`` as text, and how many more there are."""
    shown = joint.join(items[:3])
    return shown if len(items) <= 3 else f"{shown} and {len(items) - 3} more"

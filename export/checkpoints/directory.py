"""A checkpoint on disk, as transformers saves it: config, files, tensors read one at a time.

Names and shapes of tensors come from the files' headers, so a checkpoint that is cut short or does not fit is
refused before any long work. Every tensor is read, or left out for a reason (``Unread``), or named in a
warning.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch

from foveate.calib.schemes.quantized import Quantized
from foveate.engines.errors import UserError
from foveate.export.checkpoints.files import is_read
from foveate.export.checkpoints.prequantized import Packing, packing
from foveate.export.checkpoints.tensor_files import DTYPES, Folder, Reader, Tensor, some
from foveate.export.spec import Weights
from foveate.runtime.cli.options import say

__all__ = ["Directory", "Entry", "Source", "Stored", "Unread"]

Unread = Mapping[str, str]
"""Tensors that are left out: the reason for each, by a pattern (``re.fullmatch``) of their names."""

_COMPUTED: Unread = {
    r"(.*\.)?inv_freq": "rotary frequencies are computed from the config",
    r"(.*\.)?position_ids": "they only count up",
}
_WRAPPERS = {
    "module.": "DataParallel",
    "_orig_mod.": "torch.compile",
    "_fsdp_wrapped_module.": "FSDP",
    "base_model.model.": "PEFT",
}
"""Prefixes that training tools put before the names of tensors, and the tool that does it."""


@dataclass(frozen=True)
class Entry:
    """A tensor that a model needs.

    ``shape`` is its shape in our modules. ``names`` are its possible names in a checkpoint; the first one
    that exists is read. ``transposed`` says that the checkpoint stores it transposed.
    """

    shape: tuple[int, ...]
    names: tuple[str, ...]
    transposed: bool = False

    @property
    def stored_shape(self) -> tuple[int, ...]:
        """The shape in the checkpoint."""
        return self.shape[::-1] if self.transposed else self.shape


class Source(Protocol):
    """A checkpoint: its ``config.json``, its other files and its tensors.

    ``label`` names it to users. ``revision`` is its commit. ``load_format`` is "auto" for real weights and
    "dummy" for random ones. ``folders`` are the directories of its weights by role ("model", "adapter"); a
    dummy has none.
    """

    label: str
    revision: str
    load_format: str
    config: dict[str, Any]
    folders: dict[str, Folder]

    def json(self, name: str) -> dict[str, Any] | None:
        """Return a JSON file of the checkpoint, or None if it does not exist."""
        ...

    def file(self, name: str) -> Path | None:
        """Return the path of a file of the checkpoint, or None if it does not exist."""
        ...

    def names(self) -> frozenset[str]:
        """Return the names of all stored tensors, in the form that ``Entry.names`` uses.

        A dummy stores none. Raises UserError.
        """
        ...

    def weights(self, entries: Mapping[str, Entry], unread: Unread | None = None) -> Weights:
        """Return the tensors that ``entries`` name.

        Prints a warning about other tensors that no rule in ``unread`` explains. Raises UserError when a
        tensor is missing or has another shape.
        """
        ...


class Directory(Folder):
    """A Source that reads a directory."""

    load_format = "auto"

    def __init__(
        self,
        path: Path,
        label: str | None = None,
        revision: str = "local",
        remedy: str = "copy or download it again",
    ) -> None:
        """Raises UserError when ``path`` holds no ``config.json``."""
        super().__init__(path, label, remedy)
        self.revision = revision
        self.folders: dict[str, Folder] = {"model": self}
        config = self.json("config.json")
        if config is None:
            raise UserError(
                f"{self.label} is no checkpoint | it has no config.json, expected a directory in Hugging "
                "Face's format | give the directory that holds config.json"
            )
        self.config = config

    def file(self, name: str) -> Path | None:
        """Return the path of a file, or None. Its name must be in ``checkpoints/files.py``."""
        assert name.endswith((".safetensors", ".bin")) or is_read(name), (
            f"{name} is not in checkpoints/files.py"
        )
        return super().file(name)

    def names(self) -> frozenset[str]:
        """Return the names of all stored tensors, without a wrapper's prefix."""
        return frozenset(self._tensors())

    def weights(self, entries: Mapping[str, Entry], unread: Unread | None = None) -> Stored:
        """Return the tensors that ``entries`` name, as ``Source.weights`` says."""
        tensors = self._tensors()
        reader = Reader(self.label)
        packed = self._packed(entries, tensors)
        entries = {name: entry for name, entry in entries.items() if name not in packed}
        places = {name: n for name, e in entries.items() for n in [n for n in e.names if n in tensors][:1]}
        missing = [entry.names[0] for name, entry in entries.items() if name not in places]
        if missing:
            raise self._missing(missing, tensors)
        misfits = [
            f"{place} is {list(tensors[place].shape)}, expected {list(entries[name].stored_shape)}"
            for name, place in places.items()
            if tensors[place].shape != entries[name].stored_shape
        ]
        if misfits:
            raise UserError(
                f"{self.label}: shapes of tensors do not fit config.json | {some(misfits, '; ')} "
                "| take config and weights from the same checkpoint"
            )
        strange = sorted({tensors[place].dtype for place in places.values()} - set(DTYPES))
        if strange:
            raise UserError(
                f"{self.label}: weights of this dtype are not supported | got {', '.join(strange)}, expected "
                f"{', '.join(DTYPES)} | use the unquantized checkpoint; foveate quantizes it itself"
            )
        left = set(tensors) - set(places.values()) - {key for each in packed.values() for key in each.stored}
        self._say_unread(left, self.left_out(unread), packed, lambda name: reader(tensors[name]))
        return Stored(
            {name: (tensors[place], entries[name]) for name, place in places.items()}, packed, reader
        )

    @staticmethod
    def left_out(unread: Unread | None) -> Unread:
        """Return the rules for tensors that are left out: the rules for every model, and ``unread``."""
        return {**_COMPUTED, **(unread or {})}

    def _missing(self, missing: list[str], tensors: Mapping[str, Tensor]) -> UserError:
        what = f"{self.label}: tensors are missing | {some(missing)}; expected what its config.json describes"
        adapted = [name for name in tensors if ".lora_" in name or ".base_layer." in name]
        if adapted:
            return UserError(
                f"{what}, got a model with an adapter that is not merged ({adapted[0]}) | save "
                "model.merge_and_unload(), or its base model and the adapter apart, and use --adapter"
            )
        wrapped = {
            start: who for start, who in _WRAPPERS.items() if any(f".{start}" in f".{n}" for n in tensors)
        }
        for start, who in wrapped.items():
            return UserError(
                f"{what}, got names in which {who} left {start} in some places "
                "| save the model without that wrapper, with unwrapped.save_pretrained(...)"
            )
        return UserError(f"{what} | {self.remedy}, or repair config.json")

    def _say_unread(
        self,
        names: set[str],
        unread: Unread,
        packed: Mapping[str, _Packed],
        read: Callable[[str], torch.Tensor],
    ) -> None:
        """Print a warning that names the tensors that nothing reads and no rule explains."""
        modules = {each.module for each in packed.values()}
        left = sorted(name for name in names if not any(re.fullmatch(rule, name) for rule in unread))
        for name in left[:]:  # GPTQ's tools give every module a bias; it is zero where the model has none
            module, _, part = name.rpartition(".")
            if part == "bias" and module in modules and not read(name).any():
                left.remove(name)
        if left:
            say(
                f"warning: {self.label} holds {len(left)} tensors that this model does not read: "
                f"{some(left)}. Its answers may differ from those of the model that was trained"
            )

    def _packed(self, entries: Mapping[str, Entry], tensors: Mapping[str, Tensor]) -> dict[str, _Packed]:
        """Return the modules that the checkpoint stores quantized, by our names."""
        found: dict[str, _Packed] = {}
        form = packing(self.config, self.label)
        if form is None:
            return found
        for name, entry in entries.items():
            for module in (n.removesuffix(".weight") for n in entry.names if n.endswith(".weight")):
                if f"{module}.weight" not in tensors and f"{module}.{form.parts[0]}" in tensors:
                    held = {
                        part: tensors[key] for part in form.parts if (key := f"{module}.{part}") in tensors
                    }
                    found[name] = _Packed(form, held, entry.shape, module, self.label, self.remedy)
                    break
        return found

    def _tensors(self) -> dict[str, Tensor]:
        """Return every tensor by its stored name, without a wrapper's prefix that all names share."""
        found = self.tensors()
        while start := next(
            (s for s in _WRAPPERS if found and all(name.startswith(s) for name in found)), None
        ):
            found = {name.removeprefix(start): tensor for name, tensor in found.items()}
        return found


@dataclass(frozen=True)
class _Packed:
    """The tensors of a quantized ``module``. ``shape [K,N]`` is the shape of its matrix."""

    form: Packing
    tensors: dict[str, Tensor]
    shape: tuple[int, ...]
    module: str
    label: str
    remedy: str

    @property
    def stored(self) -> set[str]:
        """The names of its tensors in the checkpoint, including those that only describe it."""
        return {f"{self.module}.{part}" for part in (*self.form.parts, *self.form.extra)}

    def read(self, tensor: Callable[[Tensor], torch.Tensor]) -> Quantized:
        """Return the matrix. Raises UserError when its tensors do not fit together."""
        arrays = {part: tensor(each) for part, each in self.tensors.items()}
        try:
            found = self.form.read(
                {part: (x.float() if x.is_floating_point() else x).numpy() for part, x in arrays.items()}
            )
            if found.values.shape != self.shape:
                raise ValueError(f"a matrix of {found.values.shape}, expected {self.shape}")
        except (KeyError, ValueError) as error:
            raise UserError(
                f"{self.label}: {self.module} cannot be read as {self.form.name} "
                f"| it has {error} | {self.remedy}"
            ) from error
        return found


class Stored:
    """Weights of a Directory. ``packed`` has a function for each quantized weight that reads it."""

    def __init__(
        self, places: dict[str, tuple[Tensor, Entry]], packed: Mapping[str, _Packed], reader: Reader
    ) -> None:
        self._places, self._reader = places, reader
        self.packed = {name: partial(each.read, reader) for name, each in packed.items()}

    def __contains__(self, name: str) -> bool:
        return name in self._places or name in self.packed

    def get(self, name: str) -> torch.Tensor:
        """Return the tensor in float32, or in float16 if it is stored so.

        Raises UserError for NaN and infinity.
        """
        if name in self.packed:
            return torch.from_numpy(self.packed[name]().dequantize())
        tensor, entry = self._places[name]
        value = self._reader(tensor)
        dtype = torch.float32 if value.dtype == torch.bfloat16 else value.dtype
        # transpose and convert in one step: a second copy of a large head would take gigabytes
        value = value.T if entry.transposed else value
        return value.to(dtype, memory_format=torch.contiguous_format).contiguous()

    def own(self, name: str) -> torch.Tensor:
        """Return a float32 copy of the tensor that the caller may change."""
        value, (tensor, _) = self.get(name), self._places[name]
        if value.dtype != torch.float32:
            return value.float()
        shared = value.untyped_storage().data_ptr() == self._reader(tensor).untyped_storage().data_ptr()
        return value.clone() if shared else value

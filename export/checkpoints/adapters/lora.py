"""LoRA adapters on disk, as peft and transformers save them.

A folder holds ``adapter_config.json`` and tensors, named by the modules that they change. ``merged`` merges
them into a checkpoint.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from foveate.engines.errors import UserError
from foveate.export.checkpoints.adapters.lora_config import LoraConfig
from foveate.export.checkpoints.files import ADAPTER, ADAPTER_CONFIG, refuse_remnants
from foveate.export.checkpoints.tensor_files import DTYPES, Folder, Reader, Tensor, some

__all__ = ["Adapter", "Change"]

_NAME = r"(?:\.(?!weight$|bias$)(?P<adapter>[^.]+))?"  # the adapter's name, in files not saved by peft
_FORMS = tuple(
    re.compile(form)
    for form in (
        rf"(?P<module>.+)\.(?P<part>lora_A|lora_B){_NAME}(?P<kind>\.weight)",
        rf"(?P<module>.+)\.(?P<part>lora_B){_NAME}(?P<kind>\.bias)",
        rf"(?P<module>.+)\.(?P<part>lora_embedding_[AB]|lora_magnitude_vector){_NAME}(?P<kind>\.weight)?",
        rf"(?P<module>.+)\.token_adapter\.(?P<part>trainable_tokens_delta){_NAME}(?P<kind>)",
    )
)
_WHOLE = re.compile(r"\.(?:token_adapter\.base_layer|base_layer|modules_to_save(?:\.default)?)(?=\.)")


@dataclass
class Change:
    """The changes of an adapter to one ``module``.

    ``parts`` are LoRA's tensors by peft's names. ``whole`` are tensors that replace the module's, by the
    names of those ("weight", "bias").
    """

    module: str
    parts: dict[str, Tensor] = field(default_factory=dict)
    whole: dict[str, Tensor] = field(default_factory=dict)


class Adapter:
    """The adapter in ``folder``. ``revision`` is its commit on the hub, or "local".

    Raises UserError for an adapter that cannot be merged.
    """

    def __init__(self, folder: Folder, revision: str = "local") -> None:
        self.folder, self.revision = folder, revision
        self.label = f"adapter {folder.label}"
        found = folder.json(ADAPTER_CONFIG)
        if found is None:
            raise self._none_here()
        refuse_remnants([path.name for path in folder.path.iterdir()], self.label)
        self.config = LoraConfig.of(found, self.label)
        self.base = self._text(found, "base_model_name_or_path")
        self.base_revision = self._text(found, "revision")
        self.read = Reader(self.label)

    def _text(self, found: Mapping[str, Any], key: str) -> str | None:
        value = found.get(key)
        if not isinstance(value, str | None):
            raise self.folder.damaged(ADAPTER_CONFIG, f"one whose {key} is {value!r}, expected a text")
        return value

    def _none_here(self) -> UserError:
        below = sorted(path.parent.name for path in self.folder.path.glob(f"*/{ADAPTER_CONFIG}"))
        if below:
            return UserError(
                f"{self.label} is several adapters | got {some(below)} in folders of their own, expected one "
                f"| name one of them: --adapter {self.folder.path / below[0]}"
            )
        return UserError(
            f"{self.label} is no adapter | it has no {ADAPTER_CONFIG} | give the folder that peft's "
            "save_pretrained wrote"
        )

    @cached_property
    def changes(self) -> dict[str, Change]:
        """The changes by module. Raises UserError for missing or damaged files and for other dtypes."""
        name = next((name for name in ADAPTER if (self.folder.path / name).is_file()), None)
        if name is None:
            raise UserError(
                f"{self.label} has no weights | expected {' or '.join(ADAPTER)} beside {ADAPTER_CONFIG} "
                f"| {self.folder.remedy}"
            )
        found: dict[str, Change] = {}
        adapters: set[str] = set()
        for stored, tensor in self.folder.tensors_of(name).items():
            if tensor.dtype not in DTYPES:
                raise UserError(
                    f"{self.label}: {stored} has an unsupported dtype | got {tensor.dtype}, expected "
                    f"{', '.join(DTYPES)} | save the adapter unquantized"
                )
            plain = stored.removeprefix("base_model.model.")
            match = next((m for form in _FORMS if (m := form.fullmatch(plain))), None)
            if match is None:
                module, _, part = _WHOLE.sub("", plain).rpartition(".")
                found.setdefault(module, Change(module)).whole[part] = tensor
                continue
            adapters |= {match["adapter"]} - {None}
            part = match["part"] + (".bias" if match["kind"] == ".bias" else "")
            found.setdefault(match["module"], Change(match["module"])).parts[part] = tensor
        if len(adapters) > 1:
            raise UserError(
                f"{self.label} is several adapters | {name} has {some(sorted(adapters))}, expected one | "
                "save one of them"
            )
        return found

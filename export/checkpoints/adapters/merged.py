"""A checkpoint with a LoRA adapter, which is merged tensor by tensor while the weights are read.

``Adapted`` makes a Source of the base model's Source and an ``Adapter``. Its tensors are those that peft's
``merge_and_unload`` gives, in float32. With W ``[out,in]``, A ``[r,in]``, B ``[out,r]`` the result is
W + scaling B A; DoRA then scales each of its rows to the length in its magnitude vector.

If the head is tied to the embedding table and only one of them was trained, they become two tensors, as in
the trained model. peft's merge changes both in this case, and warns.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from foveate.engines.errors import UserError
from foveate.export.checkpoints.adapters.lora import Adapter, Change
from foveate.export.checkpoints.adapters.lora_config import LoraConfig
from foveate.export.checkpoints.directory import Directory, Entry, Stored, Unread
from foveate.export.checkpoints.tensor_files import Folder, Tensor, refuse_not_finite, some
from foveate.export.spec import Weights

__all__ = ["Adapted"]

_TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
_TEMPLATES = ("chat_template.jinja", "chat_template.json")
_IMAGES = ("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json")


class Adapted:
    """The Source of a model with an adapter. Files beside the adapter replace the base model's."""

    load_format = "auto"

    def __init__(self, base: Directory, adapter: Adapter) -> None:
        """Raise UserError when the base model is quantized."""
        self.base, self.adapter = base, adapter
        self.label, self.revision, self.config = base.label, base.revision, base.config
        beside = adapter.folder.path == base.path
        self.folders = base.folders | ({} if beside else {"adapter": adapter.folder})
        if base.config.get("quantization_config") is not None:
            method = base.config["quantization_config"].get("quant_method")
            raise UserError(
                f"{adapter.label} cannot be merged into quantized weights "
                f"| {base.label} is quantized by {method}, expected float weights "
                "| name the unquantized model with --model and the adapter with --adapter"
            )
        self._shadows = self._shadowed()

    def _shadowed(self) -> frozenset[str]:
        """Return the files of the base model that are not read.

        If the adapter's folder has one file of a group (tokenizer, chat template, image processor), the whole
        group is read there.
        """
        folder = self.adapter.folder
        settings = folder.json("tokenizer_config.json") or {}
        found: tuple[str, ...] = ()
        if folder.file("tokenizer.json"):
            found += _TOKENIZER
        if "chat_template" in settings or any(map(folder.file, _TEMPLATES)):
            found += _TEMPLATES
        if any(map(folder.file, _IMAGES)):
            found += _IMAGES
        return frozenset(found)

    def _from(self, name: str) -> Folder:
        there = name != "config.json" and (name in self._shadows or self.adapter.folder.file(name))
        return self.adapter.folder if there else self.base

    def json(self, name: str) -> dict[str, Any] | None:
        """Return a JSON file of the adapter or the base model, or None."""
        return self._from(name).json(name)

    def file(self, name: str) -> Path | None:
        """Return the path of a file of the adapter or the base model, or None."""
        return self._from(name).file(name)

    def names(self) -> frozenset[str]:
        """Return the names of all tensors of the merged model."""
        changes = self.adapter.changes.values()
        return self.base.names() | {f"{each.module}.{part}" for each in changes for part in each.whole}

    def weights(self, entries: Mapping[str, Entry], unread: Unread | None = None) -> Weights:
        """Return the merged weights. Raises UserError also for tensors of the adapter that fit nothing."""
        plan = _plan(self.adapter, entries, self.base.names(), self.base.left_out(unread))
        kept = {name: entry for name, entry in entries.items() if name not in plan.whole}
        replaced = {
            re.escape(there): "the adapter's own" for name in plan.whole for there in entries[name].names
        }
        return _Merged(self.base.weights(kept, replaced | dict(unread or {})), plan)


@dataclass(frozen=True)
class _Step:
    """The change to one of our tensors: its entry, the change, and the possible names of its module."""

    entry: Entry
    change: Change
    paths: tuple[str, ...]
    scaling: float


@dataclass(frozen=True)
class _Plan:
    """The merge, by our names: ``whole`` tensors replace the base model's, ``steps`` change them."""

    adapter: Adapter
    entries: Mapping[str, Entry]
    whole: dict[str, Tensor] = field(default_factory=dict)
    steps: dict[str, _Step] = field(default_factory=dict)


def _plan(adapter: Adapter, entries: Mapping[str, Entry], stored: frozenset[str], unread: Unread) -> _Plan:
    """Plan the merge. Raises UserError for tensors whose name or shape fits nothing."""
    config, owners = adapter.config, _owners(entries, stored)
    whole: dict[str, Tensor] = {}
    also_whole: dict[str, Tensor] = {}
    steps: dict[str, _Step] = {}
    also_steps: dict[str, _Step] = {}
    for change in adapter.changes.values():
        tie = config.ensure_weight_tying or "trainable_tokens_delta" in change.parts
        alone = config.saves(change.module) and not tie
        for part, tensor in change.whole.items():
            names = owners.get(f"{change.module}.{part}", [])
            whole |= dict.fromkeys(names[:1], tensor)
            if not alone:
                also_whole |= dict.fromkeys(names[1:], tensor)
        for part in _changed(change):
            key = f"{change.module}.{part}"
            names = owners.get(key, [])
            for number, name in enumerate(names if tie else names[:1]):
                paths = (change.module, *(n.rpartition(".")[0] for n in entries[name].names if n != key))
                step = _Step(entries[name], change, paths, config.scaling(paths))
                (also_steps if number else steps)[name] = step
    lost = [
        key
        for change in adapter.changes.values()
        for key in (f"{change.module}.{part}" for part in (*change.whole, *_changed(change)))
        if key not in owners and not any(re.fullmatch(rule, key) for rule in unread)
    ]
    if lost:
        raise UserError(
            f"{adapter.label} does not fit the model | the model has no {some(lost)} "
            "| name the base model that the adapter was trained on with --model"
        )
    unsaved = sorted(
        k for k, names in owners.items() if config.saves(k.rpartition(".")[0]) and names[0] not in whole
    )
    if unsaved:
        raise UserError(
            f"{adapter.label} lacks modules that it says it holds "
            f"| modules_to_save is {some([*config.modules_to_save])}, there is no {some(unsaved)} "
            f"| {adapter.folder.remedy}"
        )
    plan = _Plan(adapter, entries, also_whole | whole, also_steps | steps)
    _check_shapes(plan)
    return plan


def _changed(change: Change) -> tuple[str, ...]:
    """Return which tensors of its module a change adds to: "weight", "bias", or none."""
    if not change.parts:
        return ()
    return ("weight", "bias") if "lora_B.bias" in change.parts else ("weight",)


def _owners(entries: Mapping[str, Entry], stored: frozenset[str]) -> dict[str, list[str]]:
    """Return, for each name in a checkpoint, our tensors that may be read from it.

    A tensor for which the name is the preferred one comes first. A head tied to the embedding table gives two
    tensors if only one of both is ``stored``.
    """
    found: dict[str, list[str]] = {}
    for name, entry in entries.items():
        for key in entry.names:
            found.setdefault(key, []).append(name)
    for key, names in found.items():
        names.sort(key=lambda name: entries[name].names.index(key))
        place = _place(entries[names[0]], stored)
        names[1:] = [name for name in names[1:] if _place(entries[name], stored) == place]
    return found


def _place(entry: Entry, stored: frozenset[str]) -> str | None:
    return next((name for name in entry.names if name in stored), None)


def _check_shapes(plan: _Plan) -> None:
    wrong = []
    for name, tensor in plan.whole.items():
        if tensor.shape != plan.entries[name].stored_shape:
            wrong.append((tensor, plan.entries[name].stored_shape))
    for name, step in plan.steps.items():
        for part, shape in _expected(name, step, plan.adapter.config).items():
            if part not in step.change.parts:
                raise UserError(
                    f"{plan.adapter.label} is incomplete | {step.change.module} has no {part} | "
                    f"{plan.adapter.folder.remedy}"
                )
            tensor = step.change.parts[part]
            if tensor.shape != shape and not (
                part == "lora_magnitude_vector" and _length(tensor) == _length(shape)
            ):
                wrong.append((tensor, shape))
    if wrong:
        texts = [f"{tensor.name} is {list(tensor.shape)}, expected {list(shape)}" for tensor, shape in wrong]
        raise UserError(
            f"{plan.adapter.label} does not fit the model | {some(texts, '; ')} "
            "| name the base model that the adapter was trained on with --model; for one with a larger "
            "vocabulary merge the adapter with peft first"
        )


def _length(value: Tensor | Iterable[int]) -> int:
    return torch.Size(value.shape if isinstance(value, Tensor) else value).numel()


def _expected(name: str, step: _Step, config: LoraConfig) -> dict[str, tuple[int, ...]]:
    """Return the expected shapes of the parts that a step needs."""
    shape, parts = step.entry.stored_shape, step.change.parts
    if len(shape) == 1:
        return {"lora_B.bias": shape}
    rank, found = config.rank(step.paths), {}
    if "trainable_tokens_delta" in parts:
        found["trainable_tokens_delta"] = (len(config.tokens(step.change.module)), *shape[1:])
    if parts.keys() <= {"trainable_tokens_delta"}:
        return found
    if any(part.startswith("lora_embedding") for part in parts):
        found |= {"lora_embedding_A": (rank, shape[0]), "lora_embedding_B": (shape[1], rank)}
        magnitudes = shape[1:]
    else:
        ones = (1,) * (len(shape) - 2)
        found |= {"lora_A": (rank, *shape[1:]), "lora_B": (shape[0], rank, *ones)}
        magnitudes = shape[:1]
    if config.use_dora or "lora_magnitude_vector" in parts:
        found["lora_magnitude_vector"] = magnitudes
    return found


class _Merged:
    """The weights of ``Adapted``. None of them is quantized."""

    def __init__(self, base: Stored, plan: _Plan) -> None:
        self._base, self._plan = base, plan
        self.packed: dict[str, Any] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._plan.whole or name in self._base

    def get(self, name: str) -> torch.Tensor:
        """Return the merged tensor in float32; a tensor without changes may be float16, as it is stored."""
        plan, step = self._plan, self._plan.steps.get(name)
        if name in plan.whole:
            value = plan.adapter.read(plan.whole[name]).float()
            value = (value.T if plan.entries[name].transposed else value).clone(
                memory_format=torch.contiguous_format
            )
        elif step is None:
            return self._base.get(name)
        else:
            value = self._base.own(name)
        if step is not None:
            stored = value.T if step.entry.transposed else value
            _merge(
                stored,
                {part: plan.adapter.read(each).float() for part, each in step.change.parts.items()},
                step,
                plan,
            )
            refuse_not_finite(value, f"{plan.adapter.label}: {step.change.module}", "the merged weights")
        return value


def _merge(weight: torch.Tensor, parts: Mapping[str, torch.Tensor], step: _Step, plan: _Plan) -> None:
    """Merge ``parts`` into ``weight`` in place. ``weight`` is float32 in the checkpoint's layout."""
    if weight.ndim == 1:
        weight.add_(parts["lora_B.bias"], alpha=step.scaling)
        return
    if "lora_embedding_A" in parts:
        matrix, left, right = weight, parts["lora_embedding_A"].T, parts["lora_embedding_B"].T
        axis = 0
    elif "lora_A" in parts:  # a convolution is used as a matrix whose rows are its kernels
        matrix = weight if weight.ndim == 2 else weight.view(weight.shape[0], -1)
        left, right = (parts[name].flatten(1) for name in ("lora_B", "lora_A"))
        axis = 1
    else:
        matrix = None
    if matrix is not None:
        matrix.addmm_(left, right, alpha=step.scaling)
        if "lora_magnitude_vector" in parts:
            lengths = torch.linalg.vector_norm(matrix, dim=axis, keepdim=True)
            matrix.mul_(parts["lora_magnitude_vector"].reshape(lengths.shape) / lengths)
    if "trainable_tokens_delta" in parts:
        weight[list(plan.adapter.config.tokens(step.change.module))] = parts["trainable_tokens_delta"]

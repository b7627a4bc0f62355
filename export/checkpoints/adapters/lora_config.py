"""``adapter_config.json`` of a LoRA adapter, and the meaning of each of its keys for merging.

Every key of peft's ``LoraConfig`` is used, irrelevant for a reason, or refused unless it is null, false or
empty. A test compares this list with peft's own class. Unknown keys are named in a warning.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from foveate.engines.errors import UserError
from foveate.runtime.cli.options import say

__all__ = ["IRRELEVANT", "REFUSED", "USED", "LoraConfig"]

USED = (
    "alpha_pattern",
    "base_model_name_or_path",
    "bias",
    "ensure_weight_tying",
    "init_lora_weights",
    "lora_alpha",
    "modules_to_save",
    "peft_type",
    "r",
    "rank_pattern",
    "revision",
    "trainable_token_indices",
    "use_dora",
    "use_rslora",
)

_SAID = "the adapter's tensors show it"
_TRAINING = "matters for training only"
_START = "says how training began"
IRRELEVANT = {
    "auto_mapping": "names Python classes",
    "corda_config": _START,
    "eva_config": _START,
    "exclude_modules": _SAID,
    "fan_in_fan_out": "is for transformers' Conv1D; peft itself resets it for a torch.nn.Linear, "
    "and all matrices here are of that class",
    "inference_mode": _TRAINING,
    "layers_pattern": _SAID,
    "layers_to_transform": _SAID,
    "loftq_config": _START,
    "lora_bias": _SAID,
    "lora_dropout": _TRAINING,
    "lora_ga_config": _START,
    "megatron_core": "belongs to megatron_config",
    "peft_version": "says which version wrote the file",
    "qalora_group_size": "belongs to use_qalora",
    "runtime_config": "is for running unmerged; never saved",
    "target_modules": _SAID,
    "task_type": "chooses a Python class",
    "velora_config": "saves memory in training; merged like any LoRA",
}

REFUSED = {
    "alora_invocation_tokens": "an adapter that acts only behind certain words, which no merge can do",
    "arrow_config": "several adapters with a router",
    "kasa_config": "KaSA, which changes the base model's weights by an SVD",
    "layer_replication": "layers that are used several times",
    "megatron_config": "layers of Megatron",
    "monteclora_config": "MonteCLoRA, which draws random numbers",
    "target_parameters": "LoRA on single parameters, such as those of experts",
    "use_bdlora": "block-diagonal LoRA",
    "use_qalora": "QALoRA, which is for quantized weights",
}
"""The meaning of each refused key when it is not null, false or empty; continues "the adapter has"."""

_STARTS = (True, False, None, "gaussian", "eva", "orthogonal", "mica")
"""Values of ``init_lora_weights`` that leave the base model's weights as they are."""


@dataclass(frozen=True)
class LoraConfig:
    """The keys of ``adapter_config.json`` that are used. ``label`` names the adapter to users."""

    label: str
    r: int = 8
    lora_alpha: float = 8
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)
    use_rslora: bool = False
    use_dora: bool = False
    modules_to_save: tuple[str, ...] = ()
    trainable_token_indices: tuple[int, ...] | Mapping[str, tuple[int, ...]] = ()
    ensure_weight_tying: bool = False

    @classmethod
    def of(cls, found: Mapping[str, Any], label: str) -> LoraConfig:
        """Return the settings in ``found``. Raises UserError, naming the key, if they cannot be merged."""
        kind = found.get("peft_type")
        if kind != "LORA":
            raise _refusal(label, "is no LoRA adapter", f"peft_type {kind}", "LORA", "merge it")
        for key, meaning in REFUSED.items():
            if found.get(key):
                raise _refusal(label, f"has {meaning}", f"{key} {found[key]}", "none", "train without it")
        start = found.get("init_lora_weights", True)
        if start not in _STARTS:
            raise _refusal(
                label,
                "was trained on changed weights of its base model, which it does not hold",
                f"init_lora_weights {start}",
                "an adapter to the published weights",
                "save it with save_pretrained(..., path_initial_model_for_weight_conversion=...)",
            )
        if found.get("bias", "none") not in ("none", "all", "lora_only"):
            raise _refusal(
                label, "has unknown biases", f"bias {found['bias']}", "none, all or lora_only", "repair it"
            )
        unknown = [k for k in found if k not in (*USED, *IRRELEVANT, *REFUSED) and found[k]]
        if unknown:
            say(
                f"warning: {label}: adapter_config.json has keys that foveate does not know: "
                f"{', '.join(unknown)}"
            )
        values = {each: found[each] for each in cls.__dataclass_fields__ if found.get(each) is not None}
        try:
            return cls(label, **{key: _CONVERT[key](value) for key, value in values.items()})
        except (TypeError, ValueError, OverflowError, AttributeError, re.error) as error:
            raise UserError(
                f"{label}: adapter_config.json is damaged | {error} | copy or download the adapter again"
            ) from error

    def rank(self, paths: Iterable[str]) -> int:
        """Return the rank of the module with the possible names ``paths``."""
        return int(_matched(self.rank_pattern, paths, self.r))

    def scaling(self, paths: Iterable[str]) -> float:
        """Return the factor of the product B A of the module with the possible names ``paths``."""
        paths = tuple(paths)
        rank = self.rank(paths)
        return float(_matched(self.alpha_pattern, paths, self.lora_alpha)) / (
            math.sqrt(rank) if self.use_rslora else rank
        )

    def saves(self, module: str) -> bool:
        """Return True if ``module`` was trained as a whole (``modules_to_save``), in a copy of its own."""
        return any(f".{module}.".find(f".{name}.") >= 0 for name in self.modules_to_save)

    def tokens(self, module: str) -> tuple[int, ...]:
        """Return the rows of the table ``module`` that were trained."""
        given = self.trainable_token_indices
        if not isinstance(given, Mapping):
            return given
        return next((rows for name, rows in given.items() if f".{module}".endswith(f".{name}")), ())


def _matched(patterns: Mapping[str, Any], paths: Iterable[str], default: Any) -> Any:
    """Return the value of the first pattern that fits the end of a path, as peft does, or ``default``."""
    for path in paths:
        for pattern, value in patterns.items():
            if re.match(rf"(.*\.)?({pattern})$", path):
                return value
    return default


def _count(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value < 2**31:
        raise ValueError(f"it has {str(value)[:40]}, expected a whole number from 1 to {2**31 - 1}")
    return value


def _pattern(value: Any) -> dict[str, Any]:
    for pattern in value:
        re.compile(pattern)
    return dict(value.items())


def _names(value: Any) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else tuple(map(str, value))


def _rows(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: tuple(map(int, rows)) for name, rows in value.items()}
    return tuple(map(int, value))


_CONVERT: dict[str, Callable[[Any], Any]] = {
    "r": _count,
    "lora_alpha": float,
    "rank_pattern": lambda value: {name: _count(each) for name, each in _pattern(value).items()},
    "alpha_pattern": lambda value: {name: float(each) for name, each in _pattern(value).items()},
    "use_rslora": bool,
    "use_dora": bool,
    "modules_to_save": _names,
    "trainable_token_indices": _rows,
    "ensure_weight_tying": bool,
}


def _refusal(label: str, what: str, got: str, expected: str, remedy: str) -> UserError:
    return UserError(
        f"{label} {what} | adapter_config.json has {got}, expected {expected} "
        f"| {remedy}, or give a checkpoint into which it was merged"
    )

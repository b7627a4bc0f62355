"""The files of a checkpoint that are read.

A file that is not in these lists is neither downloaded (``hub``) nor opened.
"""

from __future__ import annotations

from fnmatch import fnmatchcase

from foveate.engines.errors import UserError

__all__ = [
    "ADAPTER",
    "ADAPTER_CONFIG",
    "CARD",
    "INDEX",
    "LICENCES",
    "PICKLED",
    "PICKLED_INDEX",
    "SETTINGS",
    "SINGLE",
    "WEIGHTS",
    "is_read",
    "matching",
    "refuse_remnants",
    "weight_files",
]

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLED, PICKLED_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER = ("adapter_model.safetensors", "adapter_model.bin")
CARD = "README.md"
LICENCES = tuple(
    f"{form}*"
    for name in ("licence", "license", "notice", "copying", "use_policy")
    for form in (name, name.upper(), name.capitalize())
)

SETTINGS = (
    "config.json",
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "video_preprocessor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.json",
    "chat_template.jinja",
    "additional_chat_templates/*.jinja",
    INDEX,
    PICKLED_INDEX,
    ADAPTER_CONFIG,
    CARD,
    *LICENCES,
)
"""Patterns of the small files."""

WEIGHTS = ((SINGLE,), ("model-*-of-*.safetensors",), (PICKLED,), ("pytorch_model-*-of-*.bin",))
"""Patterns of weight files in the order in which transformers looks for them; the first match is read."""

_REMNANTS = "non_lora_trainables.bin"
_BESIDE = ("clip/config.json",)  # a whole CLIP checkpoint in a directory


def is_read(name: str) -> bool:
    """Return True if ``name`` is a settings file of a checkpoint that is read."""
    return bool(matching([name], (*SETTINGS, *_BESIDE)))


def matching(names: list[str], patterns: tuple[str, ...]) -> list[str]:
    """Return the ``names`` that match one of ``patterns``, case-sensitively."""
    return [name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns)]


def weight_files(names: list[str]) -> list[str]:
    """Return the files in ``names`` that hold a repository's weights; for an adapter, the adapter's alone."""
    kinds = tuple((name,) for name in ADAPTER) if ADAPTER_CONFIG in names else WEIGHTS
    return next((found for kind in kinds if (found := matching(names, kind))), [])


def refuse_remnants(names: list[str], label: str) -> None:
    """Raise UserError when the files ``names`` of a folder show an adapter in the original LLaVA format."""
    if _REMNANTS in names:
        raise UserError(
            f"{label} is in the original LLaVA format | it has {_REMNANTS}, expected peft's files for a "
            "model in Hugging Face's format | merge it with LLaVA's scripts and convert the model"
        )

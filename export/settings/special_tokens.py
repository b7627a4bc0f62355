"""Special tokens by name, and the tokens that a tokenizer puts around every text, both as in transformers 5.

The names (``bos_token``) come from ``tokenizer_config.json`` and ``special_tokens_map.json``; chat templates
use them. The tokens around a text come from the post-processor in ``tokenizer.json`` alone. ``add_bos_token``
and ``add_eos_token`` are not read: transformers ignores them if ``tokenizer.json`` exists.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from tokenizers import AddedToken, Tokenizer

from foveate.export.checkpoints.directory import Source

__all__ = ["made_special", "named", "surroundings"]

_STANDARD = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_QWEN = dict.fromkeys(("eos_token", "unk_token", "pad_token"), "<|endoftext|>")
"""Defaults of Qwen2Tokenizer. The class that transformers uses for LLaVA's checkpoints has none."""


def named(source: Source) -> dict[str, str]:
    """Return the special tokens that a chat template can use by name, e.g. ``{"bos_token": "<s>"}``."""
    config = source.json("tokenizer_config.json") or {}
    found: dict[str, Any] = {key: value for key, value in config.items() if key.endswith("_token")}
    if "added_tokens_decoder" not in config:  # otherwise transformers ignores the older file
        older = source.json("special_tokens_map.json") or {}
        found |= {key: value for key, value in older.items() if key.endswith("_token")}
    for extra in (config.get("extra_special_tokens"), config.get("model_specific_special_tokens")):
        found |= extra if isinstance(extra, dict) else {}
    if _is_qwen(config, source):
        found = _QWEN | found
    names = {key: value.get("content") if isinstance(value, dict) else value for key, value in found.items()}
    return {key: value for key, value in names.items() if isinstance(value, str)}


def made_special(tokenizer: Tokenizer, names: Iterable[str]) -> bool:
    """Make the tokens ``names`` special in ``tokenizer``. Returns True if that changed it."""
    special = {token.content for token in tokenizer.get_added_tokens_decoder().values() if token.special}
    missing = sorted(set(names) - special)
    tokenizer.add_special_tokens([AddedToken(name, normalized=False) for name in missing])
    return bool(missing)


def surroundings(tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """Return the ids that ``tokenizer`` puts before and behind a text."""
    tokenizer.no_padding()
    tokenizer.no_truncation()
    bare, whole = tokenizer.encode("a", add_special_tokens=False).ids, tokenizer.encode("a").ids
    if not bare:  # a vocabulary without letters
        return whole, []
    before = next(n for n in range(len(whole)) if whole[n : n + len(bare)] == bare)
    return whole[:before], whole[before + len(bare) :]


def _is_qwen(config: dict[str, Any], source: Source) -> bool:
    kind = config.get("tokenizer_class")
    if kind:
        return kind.removesuffix("Fast") == "Qwen2Tokenizer"
    return str(source.config.get("model_type")).startswith("qwen2")

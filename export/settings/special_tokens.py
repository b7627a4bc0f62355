"""Special tokens by their names, and what a tokenizer puts around every text, as transformers 5 has both.

In: ``tokenizer_config.json``, ``special_tokens_map.json`` and ``tokenizer.json`` of a checkpoint. Chat
templates see the names (``bos_token``); the tokens around a text are of the post-processor in
``tokenizer.json`` alone, whatever ``add_bos_token`` and ``add_eos_token`` say: transformers drops these two
where there is a ``tokenizer.json``.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from tokenizers import AddedToken, Tokenizer

from foveate.export.checkpoints.directory import Source

__all__ = ["made_special", "named", "surroundings"]

_STANDARD = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_QWEN = dict.fromkeys(("eos_token", "unk_token", "pad_token"), "<|endoftext|>")
"""Defaults of Qwen2Tokenizer. The class that transformers takes for LLaVA's checkpoints has none."""


def named(source: Source) -> dict[str, str]:
    """The special tokens that a chat template knows by name, e.g. ``{"bos_token": "<s>"}``."""
    config = source.json("tokenizer_config.json") or {}
    found: dict[str, Any] = {key: value for key, value in config.items() if key.endswith("_token")}
    if "added_tokens_decoder" not in config:  # else transformers leaves the older file aside
        older = source.json("special_tokens_map.json") or {}
        found |= {key: value for key, value in older.items() if key.endswith("_token")}
    for extra in (config.get("extra_special_tokens"), config.get("model_specific_special_tokens")):
        found |= extra if isinstance(extra, dict) else {}
    if _is_qwen(config, source):
        found = _QWEN | found
    names = {key: value.get("content") if isinstance(value, dict) else value for key, value in found.items()}
    return {key: value for key, value in names.items() if isinstance(value, str)}


def made_special(tokenizer: Tokenizer, names: Iterable[str]) -> bool:
    """Make the tokens ``names`` special in ``tokenizer``; whether any was not, so that the tokenizer has
    changed."""
    special = {token.content for token in tokenizer.get_added_tokens_decoder().values() if token.special}
    missing = sorted(set(names) - special)
    tokenizer.add_special_tokens([AddedToken(name, normalized=False) for name in missing])
    return bool(missing)


def surroundings(tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """The ids that ``tokenizer`` puts before a text and behind it."""
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

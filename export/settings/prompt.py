"""A bundle's prompt settings, made from a checkpoint's tokenizer and chat template.

They are the chat format and token ids.
``runtime/text/chat_prompt.py`` reads them. A dummy source without files gets LLaVA-1.5's chat format.
"""

from __future__ import annotations

from typing import Any

from foveate.engines.errors import UserError
from foveate.export.checkpoints.directory import Source
from foveate.export.settings import chat_format, special_tokens
from foveate.export.settings.vocabulary import tokenizer_of

__all__ = ["prompt_settings", "tokenizer_json"]


def tokenizer_json(source: Source) -> bytes:
    """Return the checkpoint's ``tokenizer.json``. Raises UserError when it has none.

    Tokens that ``tokenizer_config.json`` names (such as ``bos_token``) are made special, as in transformers.
    """
    path = source.file("tokenizer.json")
    if path is None:
        raise UserError(
            f"{source.label} has no tokenizer.json | expected the fast tokenizer's file "
            "| save it with transformers' AutoTokenizer(...).save_pretrained"
        )
    raw = path.read_bytes()
    tokenizer = tokenizer_of(raw, source.label)
    changed = special_tokens.made_special(tokenizer, special_tokens.named(source).values())
    return tokenizer.to_str().encode() if changed else raw


def prompt_settings(
    source: Source,
    tokenizer: bytes,
    image_token_id: int,
    stop_ids: list[int],
    pad_id: int | None,
    default: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Return the settings for ``runtime/text/chat_prompt.py``.

    ``default`` is the chat format of a checkpoint without a chat template. ``stop_ids`` end an answer (see
    ``generation.stop_ids``). Raises UserError when the chat template cannot be expressed as pieces.
    """
    known = tokenizer_of(tokenizer, source.label)
    image_token = known.id_to_token(image_token_id)
    if image_token is None:
        raise UserError(
            f"{source.label}: no token {image_token_id} | config.json names it as the image token, but "
            "tokenizer.json does not have it | take both from the same checkpoint"
        )
    special = special_tokens.named(source)
    before, behind = special_tokens.surroundings(known)
    pieces = chat_format.pieces(source, image_token, special, default)
    begin = {opening.startswith(special.get("bos_token", "\0")) for opening in chat_format.openings(pieces)}
    if len(before) > 1 or (len(begin) > 1 and before + behind):
        raise UserError(
            f"{source.label}: the beginning of its prompts is not supported "
            f"| the tokenizer puts {before} before a text, and the chat template writes "
            f"{special.get('bos_token')!r} {'in some prompts only' if len(begin) > 1 else ''} "
            "| remove BOS from the template"
        )
    if True in begin:
        before, behind = [], []  # transformers' processors then add nothing
    return pieces | {
        "image_token": image_token,
        "image_token_id": image_token_id,
        "bos_id": before[0] if before else None,
        **({"suffix_ids": behind} if behind else {}),
        "stop_ids": stop_ids,
        "pad_id": pad_id,
    }

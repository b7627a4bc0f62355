"""A checkpoint's tokenizer and chat template to the settings that travel in the bundle: chat format, stop ids.

In: a source (``tokenizer.json``, a chat template). Out: the dict that ``runtime.prompt`` documents. A dummy source has
no files and gets LLaVA-1.5's. Images are in ``image_processor``, videos in ``video_processor``.
"""

from __future__ import annotations

from typing import Any

from foveate.engines.errors import UserError
from foveate.export.checkpoints.directory import Source
from foveate.export.settings import chat_format, special_tokens
from foveate.export.settings.vocabulary import tokenizer_of

__all__ = ["prompt_settings", "tokenizer_json"]


def tokenizer_json(source: Source) -> bytes:
    """The checkpoint's ``tokenizer.json``, with every token special that ``tokenizer_config.json`` gives a name, as
    transformers loads it. Raises UserError when it has none."""
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
    """Settings for ``runtime.prompt``. ``default`` is the chat format of a checkpoint that has none; ``stop_ids``
    end an answer (``generation.stop_ids``). Raises UserError when the chat template cannot be put into pieces."""
    known = tokenizer_of(tokenizer, source.label)
    image_token = known.id_to_token(image_token_id)
    if image_token is None:
        raise UserError(
            f"{source.label}: no token {image_token_id} | config.json names it as the image token, tokenizer.json "
            "does not have it | take both from the same checkpoint"
        )
    special = special_tokens.named(source)
    before, behind = special_tokens.surroundings(known)
    pieces = chat_format.pieces(source, image_token, special, default)
    begin = {opening.startswith(special.get("bos_token", "\0")) for opening in chat_format.openings(pieces)}
    if len(before) > 1 or (len(begin) > 1 and before + behind):
        raise UserError(
            f"{source.label}: the beginning of its prompts is not supported | the tokenizer puts {before} before a "
            f"text, and the chat template writes {special.get('bos_token')!r} "
            f"{'in some prompts only' if len(begin) > 1 else ''} | take BOS out of the template"
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

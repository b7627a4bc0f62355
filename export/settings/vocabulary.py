"""The check that every token has a row in the embedding table. Other checkpoints are refused.

transformers loads a checkpoint with tokens beyond the table, and fails with an IndexError when somebody
writes one of these words. On a device that would be too late. A special token without a row is accepted if
nothing feeds it to the model: text from users never becomes a special token, so a padding token behind the
table does no harm. The same rules hold for tokens that only ``tokenizer_config.json`` has.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

from tokenizers import Tokenizer

from foveate.engines.errors import UserError
from foveate.export.checkpoints.directory import Source

__all__ = ["fed_by", "refuse_tokens_beside", "refuse_tokens_beyond", "tokenizer_of"]


def tokenizer_of(file: bytes, label: str) -> Tokenizer:
    """Load a ``tokenizer.json``. Raises UserError when it is damaged."""
    try:
        return Tokenizer.from_str(file.decode())
    except Exception as error:  # the library raises bare Exception for every fault of the file
        raise UserError(
            f"{label}: tokenizer.json is damaged | {error}, expected a fast tokenizer's file "
            "| copy or download it again"
        ) from error


def refuse_tokens_beyond(rows: int, tokenizer: bytes, label: str, fed: Collection[str] = ()) -> None:
    """Raise UserError when ``tokenizer`` (a ``tokenizer.json``) makes ids of ``rows`` or more.

    ``rows`` is the number of rows of the embedding. ``fed`` are texts whose special tokens reach the model,
    besides those that the tokenizer adds by itself.
    """
    known = tokenizer_of(tokenizer, label)
    special = {token.content for token in known.get_added_tokens_decoder().values() if token.special}
    texts = [*fed, *known.encode("").tokens]
    beyond = sorted(
        (number, token)
        for token, number in known.get_vocab(with_added_tokens=True).items()
        if number >= rows and (token not in special or any(token in text for text in texts))
    )
    if beyond:
        shown = ", ".join(f"{token!r} ({number})" for number, token in beyond[:5])
        more = f" and {len(beyond) - 5} more" if len(beyond) > 5 else ""
        raise UserError(
            f"{label}: the tokenizer has tokens that the model does not know "
            f"| got {shown}{more}, expected numbers below {rows}, the rows of its embedding "
            "| resize it with model.resize_token_embeddings(len(tokenizer)) and save both again, or remove "
            "these tokens from tokenizer.json"
        )


def refuse_tokens_beside(source: Source, tokenizer: bytes, fed: Collection[str] = ()) -> None:
    """Raise UserError when ``tokenizer_config.json`` has tokens that ``tokenizer`` lacks.

    transformers adds such tokens. Words are refused, and special tokens that are in the texts ``fed``. Also
    raises UserError for ``clean_up_tokenization_spaces``, with which transformers changes answers of all
    tokenizers but BPE.
    """
    config, known = source.json("tokenizer_config.json") or {}, tokenizer_of(tokenizer, source.label)
    beside = {
        token: special
        for token, special in _tokens(config)
        if known.token_to_id(token) is None and (not special or any(token in text for text in fed))
    }
    if beside:
        raise UserError(
            f"{source.label}: tokenizer.json lacks tokens that tokenizer_config.json has "
            f"| got none for {', '.join(map(repr, beside))}, expected each in both "
            "| save the tokenizer again with transformers' AutoTokenizer(...).save_pretrained"
        )
    kind = type(known.model).__name__
    if config.get("clean_up_tokenization_spaces") and kind != "BPE":
        raise UserError(
            f"{source.label}: clean_up_tokenization_spaces in tokenizer_config.json is not supported "
            f"| got true for a tokenizer of kind {kind}, expected false | use another checkpoint"
        )


def _tokens(config: dict[str, Any]) -> Iterator[tuple[str, bool]]:
    """Yield each token in ``tokenizer_config.json``, and True if it is special."""
    for token in (config.get("added_tokens_decoder") or {}).values():
        yield token["content"], bool(token.get("special"))
    more = config.get("extra_special_tokens") or config.get("additional_special_tokens") or ()
    for token in more.values() if isinstance(more, dict) else more:
        yield (token["content"] if isinstance(token, dict) else token), True


def fed_by(prompt: dict[str, Any]) -> list[str]:
    """Return the texts in the prompt settings, without the image token: images take its place."""
    return [text for key, value in prompt.items() if key != "image_token" for text in _texts(value, prompt)]


def _texts(value: Any, prompt: dict[str, Any]) -> list[str]:
    if isinstance(value, str):
        return [value.replace(prompt["image_token"], "")]
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [text for part in parts for text in _texts(part, prompt)]

"""Tokens: turns of a conversation become token ids and places for images, and token ids become text.

``settings`` are the bundle's: the pieces of ``text.chat_format``, and for LLaVA-1.5::

    {"image_token": "<image>", "image_token_id": 32000,
     "bos_id": 1,                         # before the first piece; null if there is none or a piece holds it
     "suffix_ids": [],                    # after the last piece; optional
     "stop_ids": [2], "pad_id": 32001}    # pad_id may be null

Special tokens in the pieces become their ids. Special tokens in the user's words do not: a user's ``<image>``
or ``</s>`` is ordinary text, whereas Hugging Face's tokenizer would let it add an image or end the answer.
Otherwise the ids equal those of a processor's ``apply_chat_template(..., tokenize=True)``.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer, pre_tokenizers

from foveate.engines.errors import UserError
from foveate.runtime.text.chat_format import render
from foveate.runtime.text.turns import Turn

__all__ = ["ChatTokenizer", "Detokenizer", "ImageSlot", "Segment", "Turn", "clip_segments", "load_tokenizer"]


@dataclass(frozen=True)
class ImageSlot:
    """The place of an image in the prompt; ``index`` counts images from the start of the conversation."""

    index: int


# all blanks except \x1c to \x1f, as in the tokenizers library
_BLANKS_LEFT = re.compile(r"\A[^\S\x1c-\x1f]+")
_BLANKS_RIGHT = re.compile(r"[^\S\x1c-\x1f]+\Z")

Segment = np.ndarray | ImageSlot
"""Token ids, int64 [n] with n > 0, or the place of an image."""


class ChatTokenizer:
    """The bundle's tokenizer and chat template."""

    def __init__(self, path: str | PathLike[str], settings: dict[str, Any], rows: int | None = None) -> None:
        """Read the tokenizer. Raises UserError if the file cannot be read.

        ``path`` is a ``tokenizer.json``, ``settings`` as above. ``rows`` is the number of tokens that the
        model knows, None for all.
        """
        self.settings, self._rows = settings, rows
        self.stop_ids = frozenset(settings["stop_ids"])
        self._tokenizer = load_tokenizer(path)
        self._later = _without_first_prefix(self._tokenizer)
        added = self._tokenizer.get_added_tokens_decoder().values()
        # these special tokens swallow the blanks on their left or right
        self._left = {token.content for token in added if token.lstrip}
        self._right = {token.content for token in added if token.rstrip}
        self.special = _special_tokens(self._tokenizer)  # text -> id
        self.special[settings["image_token"]] = settings["image_token_id"]
        names = sorted(map(re.escape, self.special), key=len, reverse=True)
        self._split = re.compile(f"({'|'.join(names)})")

    def encode_turns(
        self, turns: Sequence[Turn], *, generation: bool = True, now: datetime | None = None
    ) -> list[Segment]:
        """Return the conversation as token ids and images in order.

        ``generation`` adds the opening of the answer.
        ``now`` is the date for chat templates that show one; None stands for now. Give a conversation a
        single date, so that its prompts begin alike. For a later turn, encode the whole conversation again
        and compute what follows the longest common prefix with the cache: token borders need not be turn
        borders. Raises UserError for turns that the chat template cannot render.
        """
        ids: list[int] = [] if self.settings.get("bos_id") is None else [self.settings["bos_id"]]
        segments: list[Segment] = []
        run, last, opened, images = "", "", False, 0
        for text, special in [*self._pieces(turns, generation, now), ("", True)]:
            if not special:
                run += text
                continue
            if last in self._right:
                run = _BLANKS_LEFT.sub("", run)
            if text in self._left:
                run = _BLANKS_RIGHT.sub("", run)
            if run:
                ids += _encode(self._later if opened else self._tokenizer, run)
                run = ""
            opened, last = True, text
            if text == self.settings["image_token"]:
                segments += [np.array(ids, np.int64)] if ids else []
                segments.append(ImageSlot(images))
                ids, images = [], images + 1
            elif text:
                ids.append(self.special[text])
        ids += self.settings.get("suffix_ids", [])
        segments += [np.array(ids, np.int64)] if ids else []
        for segment in segments:
            if isinstance(segment, np.ndarray):
                self._refuse_beyond(segment)
        return segments

    def encode_text(self, text: str) -> np.ndarray:
        """Return int64 [n]: a text alone, without BOS and special tokens. n may be 0."""
        ids = np.array(_encode(self._tokenizer, text), np.int64)
        self._refuse_beyond(ids)
        return ids

    def _refuse_beyond(self, ids: np.ndarray) -> None:
        """Raise UserError for ids that the model does not know.

        Builds refuse such tokens; older bundles may have some.
        """
        beyond = ids[ids >= self._rows] if self._rows is not None else ids[:0]
        if len(beyond):
            words = ", ".join(repr(self._tokenizer.id_to_token(int(number))) for number in np.unique(beyond))
            raise UserError(
                f"the model does not know {words} "
                f"| its tokenizer has tokens beyond the {self._rows} rows of its embedding "
                "| use other words, or build the bundle again from a checkpoint whose embedding has "
                "these tokens"
            )

    def decode(self, ids: Sequence[int] | np.ndarray, *, keep_special: bool = False) -> str:
        """Return the text of an answer. Special tokens are left out unless ``keep_special``."""
        return self._tokenizer.decode([int(i) for i in ids], skip_special_tokens=not keep_special)

    def detokenizer(self, *, keep_special: bool = False) -> Detokenizer:
        """Return a new Detokenizer for one answer."""
        return Detokenizer(self._tokenizer, keep_special=keep_special)

    def _pieces(
        self, turns: Sequence[Turn], generation: bool, now: datetime | None
    ) -> list[tuple[str, bool]]:
        """Return the prompt as pieces (text, whether it is a special token)."""
        pieces = []
        for text, own in render(self.settings, turns, generation=generation, now=now):
            parts = self._split.split(text) if own else [text]
            pieces += [(part, bool(i % 2)) for i, part in enumerate(parts) if part]
        return pieces


class Detokenizer:
    """Text of an answer as it grows.

    The pieces of ``step`` and ``finish`` together equal ``decode`` of all ids.

    Special tokens are left out unless ``keep_special``. Text that a later token can still change is held
    back: incomplete UTF-8, and byte tokens, because only a whole run of them shows whether it is valid.
    """

    def __init__(self, tokenizer: Tokenizer, *, keep_special: bool = False) -> None:
        self._tokenizer = tokenizer
        self._skipped = frozenset(() if keep_special else _special_tokens(tokenizer).values())
        # A window: the tokens whose text may still change, at least one token before them, and the number of
        # characters that were returned.
        self._ids: list[int] = []
        self._said = 0

    def step(self, token: int) -> str:
        """Return the text that this token completes, "" if there is none yet."""
        if int(token) in self._skipped:
            return ""  # as if it did not exist, also between two byte tokens
        self._ids.append(int(token))
        if _is_byte(self._tokenizer.id_to_token(self._ids[-1])):
            return ""
        text = self._text(self._ids)
        piece = self._take(text.rstrip("\ufffd"))
        if self._said == len(text) and len(self._ids) > 8:
            # Decode again from the last token on: constant work per token, however long the answer is.
            alone = self._text(self._ids[-1:])
            if alone and "\ufffd" not in alone:
                self._ids, self._said = self._ids[-1:], len(alone)
        return piece

    @property
    def open(self) -> str:
        """Return the text that is held back, as it would be if the answer ended here."""
        return self._text(self._ids)[self._said :]

    def finish(self) -> str:
        """Return the text that is still held back at the end of the answer."""
        return self._take(self._text(self._ids))

    def _take(self, text: str) -> str:
        piece = text[self._said :]
        self._said += len(piece)
        return piece

    def _text(self, ids: list[int]) -> str:
        # Skipped tokens never get into the window.
        return self._tokenizer.decode(ids, skip_special_tokens=False)


def load_tokenizer(path: str | PathLike[str]) -> Tokenizer:
    """Return a ``tokenizer.json``, set to treat special tokens in a text as ordinary text.

    Raises UserError.
    """
    if not Path(path).is_file():
        raise UserError(f"the tokenizer is missing | expected {path} | build the bundle again")
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception for every fault of the file
        raise UserError(f"cannot read the tokenizer {path} | {error} | build the bundle again") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True
    return tokenizer


def clip_segments(text: str, tokenizer: Tokenizer, context: int = 77) -> np.ndarray:
    """Return int64 [S, context]: a text for CLIP's text encoder, split into segments so that nothing is lost.

    Each row is BOS, up to ``context`` - 2 tokens, EOS, and then EOS again to the end, as Hugging Face's
    CLIPTokenizer pads. ``tokenizer`` is ``load_tokenizer`` of the bundle's ``clip_tokenizer.json``. A text
    without tokens gives S = 0.
    """
    bos, eos = tokenizer.encode("").ids
    ids, width = _encode(tokenizer, text), context - 2
    rows = np.full((-(-len(ids) // width), context), eos, np.int64)
    for i, row in enumerate(rows):
        part = ids[i * width : (i + 1) * width]
        row[0], row[1 : 1 + len(part)] = bos, part
    return rows


def _encode(tokenizer: Tokenizer, text: str) -> list[int]:
    try:
        return tokenizer.encode(text, add_special_tokens=False).ids
    # lone surrogates make this fail: bytes from a shell that could not be decoded
    except (TypeError, UnicodeEncodeError) as error:
        raise UserError(
            "the text is not valid Unicode | expected UTF-8 | check the terminal's encoding"
        ) from error


def _special_tokens(tokenizer: Tokenizer) -> dict[str, int]:
    added = tokenizer.get_added_tokens_decoder()
    return {token.content: number for number, token in added.items() if token.special}


def _without_first_prefix(tokenizer: Tokenizer) -> Tokenizer:
    """Return a tokenizer for text after a special token.

    If ``tokenizer`` puts a blank before the very first word only, the new one puts none. Otherwise it is
    ``tokenizer``.
    """
    step = tokenizer.pre_tokenizer
    if not isinstance(step, pre_tokenizers.Metaspace) or step.prepend_scheme != "first":
        return tokenizer
    later = Tokenizer.from_str(tokenizer.to_str())
    later.pre_tokenizer = pre_tokenizers.Metaspace(step.replacement, prepend_scheme="never", split=step.split)
    later.encode_special_tokens = True
    return later


def _is_byte(token: str | None) -> bool:
    return token is not None and re.fullmatch("<0x[0-9A-F]{2}>", token) is not None

"""A chat format of plain pieces: turns of a conversation go in, the prompt's text comes out.

The device has no template engine. ``foveate build`` reads the pieces off the checkpoint's chat template and
proves that they make the same prompts (``export.chat``). For LLaVA-1.5::

    {"before": "",                       # opens the prompt, unless a system turn does
     "roles": {"system": "", "user": "USER: ", "assistant": "ASSISTANT: "},           # opens a turn
     "image": "<image>\\n",              # stands for one image
     "order": "images first",            # images before texts, whatever the order of the parts; or "given"
     "after_text": " ",                  # follows each text of a turn
     "end": "",                          # closes a turn
     "closing": {"assistant": "</s>"},   # closes turns of these roles in place of after_text and end
     "generation": "ASSISTANT:"}         # asks for the answer

What a chat template does to texts, by role, where it does something::

    {"strip": {"user": {"left": null, "right": null}},        # takes blanks off each text
     "reasoning": {"assistant": {"end": "</think>", "left": "\\n"}},   # keeps what follows the last </think>
     "limits": ["user last"]}            # what the pieces cannot say; the keys of ``LIMITS``

``left`` and ``right`` are the characters that are taken off that side, null for every kind of blank; a side
that is absent stays. Those of ``reasoning`` apply only to texts that hold ``end``. With ``"whole": true``
beside them, ``strip`` is of all that a turn holds, images too, and not of each text. ``order`` is absent
where images between words are not known to come out as they do with the chat template, and in bundles of
older versions: such turns are refused.

A piece may hold the date: ``{{ strftime_now("%d %b %Y") }}`` becomes the date in that format of ``strftime``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from datetime import datetime
from itertools import pairwise
from typing import Any

from foveate.engines.errors import UserError, unknown
from foveate.runtime.text.turns import IMAGE, Part, Turn

__all__ = ["LIMITS", "Piece", "date_piece", "render"]

Piece = tuple[str, bool]
"""A text, and whether it is the chat format's own, in which special tokens count, or somebody's words."""

_DATE = re.compile(r'\{\{ strftime_now\(("(?:[^"\\]|\\.)*")\) \}\}')

LIMITS: dict[str, tuple[str, Callable[[list[str]], bool]]] = {
    "user first": (
        "begin with an answer",
        lambda roles: [role for role in roles if role != "system"][:1] == ["assistant"],
    ),
    "user last": ("end with an answer", lambda roles: roles[-1:] == ["assistant"]),
    "system first": ("have a system turn that is not the first", lambda roles: "system" in roles[1:]),
    "one answer": (
        "have two answers in a row",
        lambda roles: ("assistant", "assistant") in pairwise(roles),
    ),
}
"""Conversations that some chat templates write in a way that pieces cannot: in words, and how roles tell."""


def date_piece(form: str) -> str:
    """What stands in a piece for the date in this format."""
    return f"{{{{ strftime_now({json.dumps(form)}) }}}}"


def render(
    settings: dict[str, Any], turns: Sequence[Turn], *, generation: bool = True, now: datetime | None = None
) -> list[Piece]:
    """The prompt in pieces, with the opening of the answer when ``generation``. ``now`` is the date for
    formats that show one; None: this moment's. Raises UserError for a turn or a conversation that the format
    cannot put."""
    roles = [turn.role for turn in turns]
    for limit in settings.get("limits", ()):
        words, broken = LIMITS[limit]
        if broken(roles):
            raise UserError(
                f"this model's chat template cannot be followed in conversations that {words} "
                f"| got {', '.join(roles)} | change the turns"
            )
    pieces: list[Piece] = []
    if roles[:1] != ["system"]:
        pieces.append((settings.get("before", ""), True))
    for turn in turns:
        if turn.role not in settings["roles"]:
            raise unknown("role", turn.role, settings["roles"])
        pieces.append((settings["roles"][turn.role], True))
        pieces += _content(settings, turn)
        pieces.append((settings.get("closing", {}).get(turn.role, settings.get("end", "")), True))
    if generation:
        pieces.append((settings["generation"], True))
    now = now or datetime.now()
    return [(_dated(text, now) if own else text, own) for text, own in pieces if text]


def _content(settings: dict[str, Any], turn: Turn) -> list[Piece]:
    strip = settings.get("strip", {}).get(turn.role, {})
    reasoning = settings.get("reasoning", {}).get(turn.role)
    after = "" if turn.role in settings.get("closing", {}) else settings.get("after_text", "")
    pieces: list[Piece] = []
    for part in _ordered(settings, turn):
        if not isinstance(part, str):
            pieces.append((settings["image"], True))
            continue
        if reasoning and reasoning["end"] in part:
            part = _stripped(part.split(reasoning["end"])[-1], reasoning)
        pieces.append((part if strip.get("whole") else _stripped(part, strip), False))
        pieces.append((after, True))
    return _strip_pieces(pieces, strip) if strip.get("whole") else pieces


def _ordered(settings: dict[str, Any], turn: Turn) -> Sequence[Part]:
    """The turn's parts as the chat template has them."""
    first: list[Part] = [*[IMAGE] * turn.images, *turn.texts]
    if turn.role != "user" and (turn.images or len(turn.texts) != 1):
        raise UserError(
            f"a turn of {turn.role!r} is one text | got {len(turn.texts)} texts and {turn.images} images "
            "| show images in the user's turns"
        )
    order = settings.get("order")
    if order is None and (list(turn.parts) != first or len(turn.texts) > 1):
        raise UserError(
            "this bundle does not say where images stand between words | got a turn of several texts, or with "
            "an image behind a text | put the images first and the text in one piece, or build the bundle again"
        )
    return turn.parts if order == "given" else first


def _stripped(text: str, rule: dict[str, Any]) -> str:
    if "left" in rule:
        text = text.lstrip(rule["left"])
    return text.rstrip(rule["right"]) if "right" in rule else text


def _strip_pieces(pieces: list[Piece], rule: dict[str, Any]) -> list[Piece]:
    """``_stripped`` of the text that the pieces make together."""
    left = {"left": rule["left"]} if "left" in rule else {}
    right = {"right": rule["right"]} if "right" in rule else {}
    pieces = list(pieces)
    for index, side in ((0, left), (-1, right)):
        while side and pieces:
            text, own = pieces[index]
            pieces[index] = _stripped(text, side), own
            if pieces[index][0]:
                break
            del pieces[index]
    return pieces


def _dated(text: str, now: datetime) -> str:
    return _DATE.sub(lambda found: now.strftime(json.loads(found[1])), text)

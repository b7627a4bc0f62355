r"""A chat template as plain pieces of text: renders the turns of a conversation as the text of a prompt.

The device has no template engine. ``foveate build`` derives the pieces from the checkpoint's chat template
and checks that they make the same prompts. For LLaVA-1.5::

    {"before": "",                       # opens the prompt, unless a system turn does
     "roles": {"system": "", "user": "USER: ", "assistant": "ASSISTANT: "},           # opens a turn
     "image": "<image>\n",               # stands for one image
     "order": "images first",            # images before texts, whatever the order of the parts; or "given"
     "after_text": " ",                  # follows each text of a turn
     "end": "",                          # closes a turn
     "closing": {"assistant": "</s>"},   # closes turns of these roles, in place of after_text and end
     "generation": "ASSISTANT:"}         # asks for the answer

Optional settings for what a chat template does to texts, by role::

    {"strip": {"user": {"left": null, "right": null}},        # removes blanks around each text
     # keeps only what follows the last </think>
     "reasoning": {"assistant": {"end": "</think>", "left": "\n"}},
     "limits": ["user last"]}            # conversations that pieces cannot render; keys of ``LIMITS``

``left`` and ``right`` are the characters that are removed on that side; null means every kind of blank. A
side that is absent is not stripped. The sides of ``reasoning`` apply only to texts that hold ``end``. With
``"whole": true`` beside its sides, ``strip`` applies to all content of a turn together, images included,
instead of each text. ``order`` is absent if it is not known that images between words come out as with the
chat template, and in older bundles. Such turns are refused.

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
"""A text, and whether it belongs to the chat template (True: special tokens count) or is somebody's words
(False)."""

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
"""Conversations that some chat templates render in a way that pieces cannot: in words, and as a test of the
roles."""


def date_piece(form: str) -> str:
    """Return the text that stands in a piece for the date in this format."""
    return f"{{{{ strftime_now({json.dumps(form)}) }}}}"


def render(
    settings: dict[str, Any], turns: Sequence[Turn], *, generation: bool = True, now: datetime | None = None
) -> list[Piece]:
    """Return the prompt in pieces, with the opening of the answer if ``generation``.

    ``now`` is the date for chat templates that show one; None stands for now. Raises UserError for a turn or
    a conversation that the pieces cannot render.
    """
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
    """Return the turn's parts in the order of the chat template.

    Raises UserError for parts that it cannot render.
    """
    first: list[Part] = [*[IMAGE] * turn.images, *turn.texts]
    if turn.role != "user" and (turn.images or len(turn.texts) != 1):
        raise UserError(
            f"a turn of {turn.role!r} is one text | got {len(turn.texts)} texts and {turn.images} images "
            "| show images in the user's turns"
        )
    order = settings.get("order")
    if order is None and (list(turn.parts) != first or len(turn.texts) > 1):
        raise UserError(
            "this bundle does not say where images stand between words "
            "| got a turn of several texts, or with an image after a text "
            "| put the images first and the text in one piece, or build the bundle again"
        )
    return turn.parts if order == "given" else first


def _stripped(text: str, rule: dict[str, Any]) -> str:
    if "left" in rule:
        text = text.lstrip(rule["left"])
    return text.rstrip(rule["right"]) if "right" in rule else text


def _strip_pieces(pieces: list[Piece], rule: dict[str, Any]) -> list[Piece]:
    """Return the pieces stripped by ``rule`` as if they were one text."""
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

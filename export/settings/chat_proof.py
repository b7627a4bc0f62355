"""The proof that pieces of a chat format make the prompts that a chat template makes.

Both are run on the same conversations, the pieces by the runtime's own code. The texts in them are chosen to
show what templates do to texts: blanks at the ends, nothing at all, reasoning, and every string that the
template's code holds.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any

from foveate.export.settings.chat_template import ChatTemplate, RenderError
from foveate.runtime.text.chat_format import LIMITS, render
from foveate.runtime.text.turns import IMAGE, Part, Turn

__all__ = ["MismatchError", "conversations", "limits", "mixed", "prove", "system_turns"]

_WORDS = (
    *("What?", "a\nb", "", " ", " a ", "\n\na\n", "\n \ta\t \n", "\u3000\xa0a\u2003\x1f"),
    *(
        "a</think>b",
        "<think>\na\n</think>\n\nb",
        "a</think> \n b</think>\n\n c \n",
        "</think>\n",
        "\n</think>",
    ),
)
_MIXED: tuple[tuple[Part, ...], ...] = (
    *(("a", IMAGE), ("a", IMAGE, "b"), (IMAGE, "a", IMAGE, "b"), ("a", IMAGE, IMAGE, "b", IMAGE)),
    *(("a", "b"), (IMAGE, "a", "b"), (" a ", IMAGE, " b "), ("\na\n", IMAGE, " ", IMAGE), (IMAGE, " ", "a")),
)
_DATES = (datetime(2024, 2, 9, 8, 5, 3), datetime(2026, 11, 30, 23, 59, 58), datetime(2025, 5, 1))
_LIMITED = {
    "user first": ["assistant", "user"],
    "user last": ["user", "assistant"],
    "system first": ["user", "assistant", "system", "user"],
    "one answer": ["user", "assistant", "assistant", "user"],
}


class MismatchError(Exception):
    """What a template does that pieces do not."""


def prove(template: ChatTemplate, settings: dict[str, Any], talks: Iterable[Sequence[Turn]]) -> None:
    """Raises MismatchError for the first conversation of which the two make different prompts, RenderError
    where the template makes none."""
    for turns in talks:
        for generation in (True, False):
            for now in _DATES if template.dated else _DATES[:1]:
                theirs = template(turns, generation, now)
                ours = "".join(text for text, _ in render(settings, turns, generation=generation, now=now))
                if theirs != ours:
                    raise MismatchError(_difference(turns, theirs, ours))


def conversations(template: ChatTemplate) -> list[list[Turn]]:
    """Turns of users and assistants, images before text."""
    ask, reply = Turn("user", "Why?"), Turn("assistant", "It.")
    talks = [[Turn("user", "What?", 2), reply, Turn("user", None, 1)]]
    talks.append([*talks[0], reply, ask])
    for word in _words(template):
        for asked in (Turn("user", word), Turn("user", word, 1)):
            talks += [[asked], [asked, Turn("assistant", word), ask, reply, asked]]
    return talks


def system_turns(template: ChatTemplate) -> list[list[Turn]]:
    ask, reply = Turn("user", "Why?", 1), Turn("assistant", "It.")
    return [[Turn("system", word), ask, reply, ask] for word in _words(template)]


def mixed() -> list[list[Turn]]:
    """Turns of several texts and images, in any order."""
    return [[Turn("user", parts=p), Turn("assistant", "It."), Turn("user", parts=p)] for p in _MIXED]


def limits(template: ChatTemplate, settings: dict[str, Any]) -> list[str]:
    """The keys of ``LIMITS`` for what the pieces do not put as the template does."""
    broken = []
    for name in LIMITS:
        roles = _LIMITED[name]
        if not set(roles) <= settings["roles"].keys():
            continue
        texts = ("It.", "a</think>b") if name == "user last" else ("It.",)
        try:
            prove(template, settings, [[Turn(role, text) for role in roles] for text in texts])
        except (MismatchError, RenderError):
            broken.append(name)
    return broken


def _words(template: ChatTemplate) -> list[str]:
    named = [word for word in template.constants if word.strip()]
    return [*_WORDS, *(f"a{word}b" for word in named), *(f"{word}a{word}" for word in named)]


def _difference(turns: Sequence[Turn], theirs: str, ours: str) -> str:
    same = next((i for i, pair in enumerate(zip(theirs, ours, strict=False)) if len(set(pair)) > 1), 0)
    start = max(same - 20, 0)
    said = ", ".join(f"{turn.role} {list(turn.texts)} with {turn.images} images" for turn in turns[:2])
    return f"of {said} it makes {theirs[start : start + 60]!r}, pieces make {ours[start : start + 60]!r}"

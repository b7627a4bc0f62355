"""The proof that the pieces of a chat format make the same prompts as a chat template.

Both run on the same conversations; the pieces are run by the runtime's own code. The texts in the
conversations show what templates do to texts: blanks at the ends, empty texts, reasoning, and every string in
the template's code.
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
    """A difference between the prompts of a template and of its pieces."""


def prove(template: ChatTemplate, settings: dict[str, Any], talks: Iterable[Sequence[Turn]]) -> None:
    """Raise MismatchError for the first conversation with different prompts.

    Raises RenderError if the template refuses a conversation.
    """
    for turns in talks:
        for generation in (True, False):
            for now in _DATES if template.dated else _DATES[:1]:
                theirs = template(turns, generation, now)
                ours = "".join(text for text, _ in render(settings, turns, generation=generation, now=now))
                if theirs != ours:
                    raise MismatchError(_difference(turns, theirs, ours))


def conversations(template: ChatTemplate) -> list[list[Turn]]:
    """Return conversations of users and assistants with images before text."""
    ask, reply = Turn("user", "Why?"), Turn("assistant", "It.")
    talks = [[Turn("user", "What?", 2), reply, Turn("user", None, 1)]]
    talks.append([*talks[0], reply, ask])
    for word in _words(template):
        for asked in (Turn("user", word), Turn("user", word, 1)):
            talks += [[asked], [asked, Turn("assistant", word), ask, reply, asked]]
    return talks


def system_turns(template: ChatTemplate) -> list[list[Turn]]:
    """Return conversations that begin with a system turn."""
    ask, reply = Turn("user", "Why?", 1), Turn("assistant", "It.")
    return [[Turn("system", word), ask, reply, ask] for word in _words(template)]


def mixed() -> list[list[Turn]]:
    """Return conversations whose turns hold several texts and images, in any order."""
    return [[Turn("user", parts=p), Turn("assistant", "It."), Turn("user", parts=p)] for p in _MIXED]


def limits(template: ChatTemplate, settings: dict[str, Any]) -> list[str]:
    """Return the keys of ``LIMITS`` for the kinds of conversations in which the pieces fail."""
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
    theirs, ours = theirs[start : start + 60], ours[start : start + 60]
    return f"for {said} it makes {theirs!r}, plain pieces make {ours!r}"

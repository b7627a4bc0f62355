"""Chat templates as plain pieces of text, since the device has no template engine.

A checkpoint's chat template is rendered for small conversations, and the pieces of
``runtime/text/chat_format.py`` are read off the results. Then the runtime's own code must make the same
prompts of larger conversations. Their texts show what templates do to texts: blanks at the ends, tags, and
every word that the template's code names. A template that pieces cannot express is refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from foveate.engines.errors import UserError
from foveate.export.checkpoints.directory import Source
from foveate.export.settings import chat_proof, chat_template
from foveate.export.settings.chat_proof import MismatchError
from foveate.export.settings.chat_template import ChatTemplate, RenderError
from foveate.runtime.text.turns import IMAGE, Part, Turn

__all__ = ["LLAVA", "openings", "pieces"]

LLAVA: dict[str, Any] = {
    "before": "",
    "roles": {"system": "", "user": "USER: ", "assistant": "ASSISTANT: "},
    "image": "<image>\n",
    "order": "images first",
    "after_text": " ",
    "end": "",
    "generation": "ASSISTANT:",
}
"""LLaVA-1.5's format, for checkpoints without a template."""

_A, _B, _C = "\x01", "\x02", "\x03"  # texts that no template contains or strips
_BLANKS = (" ", "\n", "\t", "\r", "\u3000")

Rule = dict[str, Any]


def pieces(
    source: Source, image_token: str, special: dict[str, str], default: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Return the settings for ``runtime/text/chat_format.py``, made from the checkpoint's chat template.

    ``special`` are the special tokens by name. ``default`` is the format of a checkpoint without a template.
    Raises UserError when the template cannot be rendered or cannot be expressed as pieces.
    """
    found = chat_template.find(source)
    if found is None:
        return default or LLAVA | {"image": f"{image_token}\n"}
    text, name = found
    try:
        return _derive(ChatTemplate(text, special), image_token)
    except (RenderError, MismatchError) as error:
        raise UserError(
            f"{source.label}: this chat template is not supported "
            f"| {error} | change {name}: it may put a fixed text before and after each message, keep images "
            "in their place, and keep texts as they are, strip them, or cut them behind the last </think>"
        ) from error


def openings(settings: dict[str, Any]) -> list[str]:
    """Return the possible texts before the first message's own words: of a user's and of a system message."""
    user = settings.get("before", "") + settings["roles"]["user"]
    return [user, settings["roles"]["system"]] if "system" in settings["roles"] else [user]


def _derive(template: ChatTemplate, image_token: str) -> dict[str, Any]:
    settings = _plain(template)
    if settings["image"].count(image_token) != 1:
        text = settings["image"]
        raise MismatchError(f"it writes {text!r} for an image, which does not hold one {image_token!r}")
    for role in settings["roles"]:
        if rule := _strip_rule(template, role):
            settings.setdefault("strip", {})[role] = rule
        if rule := _reasoning_rule(template, role, rule):
            settings.setdefault("reasoning", {})[role] = rule
    return _proven(template, settings)


def _plain(template: ChatTemplate) -> dict[str, Any]:
    """Return the pieces of a template, read off texts that it does not change."""
    first, two = template([_user(_A)]), template([_user(_A), _user(_B)])
    before_a, after_a = _around(first, _A)
    between, after_b = _around(two.removeprefix(before_a + _A), _B)
    # The text between both is the end of the first turn and the opening of the second.
    user = between.removeprefix(after_a)
    if between != after_a + user or after_b != after_a or not before_a.endswith(user):
        raise MismatchError(f"it makes {two!r} of two turns, which is no repetition of {first!r}")
    image = _around(template([_user(IMAGE, _A)]), _A)[0].removeprefix(before_a)
    end = _behind_an_image(template, before_a, image)
    turns = {"assistant": _answer(template, first, user, after_a)} | _system(template, user, after_a)
    settings: dict[str, Any] = {
        "before": before_a.removesuffix(user),
        "roles": {"user": user} | {role: opening for role, (opening, _) in turns.items()},
        "image": image,
        "after_text": after_a.removesuffix(end),
        "end": end,
    }
    closing = {role: tail for role, (_, tail) in turns.items() if tail != after_a}
    if closing:
        settings["closing"] = closing
    return settings | {"generation": template([_user(_A)], True).removeprefix(first)}


def _user(*parts: Part) -> Turn:
    return Turn("user", parts=parts)


def _around(text: str, mark: str) -> tuple[str, str]:
    before, found, after = text.rpartition(mark)
    if not found:
        raise MismatchError(f"it drops or changes a message's text: {text!r}")
    return before, after


def _behind_an_image(template: ChatTemplate, before: str, image: str) -> str:
    """Return the text that closes a turn of one image. The template may strip blanks around the image."""
    alone = template([_user(IMAGE)])
    for opening in (before + image, before + image.rstrip(), before + image.strip()):
        if alone.startswith(opening):
            return alone.removeprefix(opening)
    raise MismatchError(f"it makes {alone!r} of an image alone, and {before + image!r} of one before a text")


def _answer(template: ChatTemplate, first: str, user: str, after: str) -> tuple[str, str]:
    """Return the texts before and after an answer that the user replies to."""
    talk = template([_user(_A), Turn("assistant", _B), _user(_C)])
    opening, rest = _around(talk.removeprefix(first), _B)
    if not talk.startswith(first) or not rest.endswith(user + _C + after):
        raise MismatchError(
            f"it makes {talk!r} of three turns, which does not begin with {first!r} or end in the same way"
        )
    return opening, rest.removesuffix(user + _C + after)


def _system(template: ChatTemplate, user: str, after: str) -> dict[str, tuple[str, str]]:
    """Return the texts before and after a system turn.

    The result is empty if the template refuses system turns or puts them into the user's turn.
    """
    try:
        opening, rest = _around(template([Turn("system", _A), _user(_B)]), _A)
    except (RenderError, MismatchError):
        return {}
    tail = user + _B + after
    return {"system": (opening, rest.removesuffix(tail))} if rest.endswith(tail) else {}


def _talk(role: str, text: str) -> list[Turn]:
    """Return a conversation in which ``role`` says ``text`` and the user speaks last."""
    if role == "user":
        return [_user(text)]
    return [*([_user(_A)] if role == "assistant" else []), Turn(role, text), _user(_C)]


def _strip_rule(template: ChatTemplate, role: str) -> Rule:
    """Return the blanks that the template strips from the texts of ``role``."""
    bare = template(_talk(role, _B))
    return _rule(
        [c for c in _BLANKS if template(_talk(role, c + _B)) == bare],
        [c for c in _BLANKS if template(_talk(role, _B + c)) == bare],
    )


def _rule(left: list[str], right: list[str]) -> Rule:
    sides = {"left": left, "right": right}
    every = len(_BLANKS)
    return {side: None if len(c) == every else "".join(c) for side, c in sides.items() if c}


def _reasoning_rule(template: ChatTemplate, role: str, strip: Rule) -> Rule:
    """Return the word that ends the reasoning in texts of ``role``, and the blanks stripped with it.

    The word is a string in the template's code: the template drops everything up to it. Empty without such a
    word.
    """
    for word in sorted(template.constants, key=len):
        head = _A + _B + word
        bare = template(_talk(role, head + _B)) if word.strip() else ""
        if not bare or template(_talk(role, _B)) != bare:
            continue
        rule = _rule(
            [c for c in _BLANKS if template(_talk(role, head + c + _B)) == bare],
            [c for c in _BLANKS if template(_talk(role, head + _B + c)) == bare],
        )
        return {"end": word} | {side: c for side, c in rule.items() if strip.get(side, "") != c}
    return {}


def _proven(template: ChatTemplate, settings: dict[str, Any]) -> dict[str, Any]:
    """Return ``settings`` restricted to the conversations for which they make the template's prompts.

    Raises MismatchError if they fail for plain conversations.
    """
    fitting, faults = [], []
    for choice in _choices(settings):
        try:
            chat_proof.prove(template, choice, chat_proof.conversations(template))
            fitting.append(choice)
        except MismatchError as error:
            faults.append(error)
    if not fitting:
        raise faults[0]
    ordered = (choice | {"order": order} for choice in fitting for order in ("given", "images first"))
    settings = next((s for s in ordered if _holds(template, s, chat_proof.mixed())), fitting[0])
    if "system" in settings["roles"] and not _holds(template, settings, chat_proof.system_turns(template)):
        settings = settings | {"roles": {k: v for k, v in settings["roles"].items() if k != "system"}}
    limits = chat_proof.limits(template, settings)
    return settings | ({"limits": limits} if limits else {})


def _choices(settings: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield ``settings`` with both possible rules for users: strip each text, or strip the turn as a whole.

    Small conversations do not tell which rule the template follows.
    """
    yield settings
    if rule := settings.get("strip", {}).get("user"):
        yield settings | {"strip": settings["strip"] | {"user": rule | {"whole": True}}}


def _holds(template: ChatTemplate, settings: dict[str, Any], talks: list[list[Turn]]) -> bool:
    try:
        chat_proof.prove(template, settings, talks)
    except (MismatchError, RenderError):
        return False
    return True

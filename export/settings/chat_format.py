"""Chat templates to plain pieces: the device has no template engine.

In: a checkpoint's chat template. Out: the pieces of ``runtime.chat_format``, read off what the template makes
of small conversations. Then the runtime's own code is proven to make the same prompts of larger ones, with
texts chosen to show what templates do to them (blanks at the ends, tags, every word that the template's code
names). What pieces cannot express is refused.
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

_A, _B, _C = "\x01", "\x02", "\x03"  # texts that no template holds, and none strips
_BLANKS = (" ", "\n", "\t", "\r", "\u3000")

Rule = dict[str, Any]


def pieces(
    source: Source, image_token: str, special: dict[str, str], default: dict[str, Any] | None = None
) -> dict[str, Any]:
    """The settings that ``runtime.chat_format`` describes, of the checkpoint's chat template.

    ``special`` are its special tokens by name, ``default`` is the format of a checkpoint without a template.
    Raises UserError when the template cannot be rendered or says more than pieces can.
    """
    found = chat_template.find(source)
    if found is None:
        return default or LLAVA | {"image": f"{image_token}\n"}
    text, name = found
    try:
        return _derive(ChatTemplate(text, special), image_token)
    except (RenderError, MismatchError) as error:
        raise UserError(
            f"{source.label}: this chat template is not supported | {error} | change {name}: a fixed text before "
            "and behind each message, images where they are in the message, texts as they are, stripped, or without "
            "what stands before the last </think>"
        ) from error


def openings(settings: dict[str, Any]) -> list[str]:
    """What stands before the first words of a prompt, by how the conversation begins."""
    user = settings.get("before", "") + settings["roles"]["user"]
    return [user, settings["roles"]["system"]] if "system" in settings["roles"] else [user]


def _derive(template: ChatTemplate, image_token: str) -> dict[str, Any]:
    settings = _plain(template)
    if settings["image"].count(image_token) != 1:
        raise MismatchError(f"an image is {settings['image']!r}, which does not hold one {image_token!r}")
    for role in settings["roles"]:
        if rule := _strip_rule(template, role):
            settings.setdefault("strip", {})[role] = rule
        if rule := _reasoning_rule(template, role, rule):
            settings.setdefault("reasoning", {})[role] = rule
    return _proven(template, settings)


def _plain(template: ChatTemplate) -> dict[str, Any]:
    """The pieces of a template that leaves texts as they are."""
    first, two = template([_user(_A)]), template([_user(_A), _user(_B)])
    before_a, after_a = _around(first, _A)
    between, after_b = _around(two.removeprefix(before_a + _A), _B)
    # Between the texts stand the end of the first turn and the opening of the second.
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
        raise MismatchError(f"a text is not in what it makes: {text!r}")
    return before, after


def _behind_an_image(template: ChatTemplate, before: str, image: str) -> str:
    """What closes a turn that is one image, which may have lost its blanks."""
    alone = template([_user(IMAGE)])
    for opening in (before + image, before + image.rstrip(), before + image.strip()):
        if alone.startswith(opening):
            return alone.removeprefix(opening)
    raise MismatchError(f"it makes {alone!r} of an image alone, and {before + image!r} of one before a text")


def _answer(template: ChatTemplate, first: str, user: str, after: str) -> tuple[str, str]:
    """What opens and closes an answer that the user replies to."""
    talk = template([_user(_A), Turn("assistant", _B), _user(_C)])
    opening, rest = _around(talk.removeprefix(first), _B)
    if not talk.startswith(first) or not rest.endswith(user + _C + after):
        raise MismatchError(
            f"it makes {talk!r} of three turns, which does not begin with {first!r} or end so"
        )
    return opening, rest.removesuffix(user + _C + after)


def _system(template: ChatTemplate, user: str, after: str) -> dict[str, tuple[str, str]]:
    """What opens and closes a system turn; nothing where the template takes none, or puts it into the
    user's."""
    try:
        opening, rest = _around(template([Turn("system", _A), _user(_B)]), _A)
    except (RenderError, MismatchError):
        return {}
    tail = user + _B + after
    return {"system": (opening, rest.removesuffix(tail))} if rest.endswith(tail) else {}


def _talk(role: str, text: str) -> list[Turn]:
    """A conversation in which ``role`` says ``text``, and the user has the last word."""
    if role == "user":
        return [_user(text)]
    return [*([_user(_A)] if role == "assistant" else []), Turn(role, text), _user(_C)]


def _strip_rule(template: ChatTemplate, role: str) -> Rule:
    """Which blanks the template takes off the texts of ``role``."""
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
    """The word of the template's code behind which the texts of ``role`` begin, and the blanks that go with
    it."""
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
    """``settings`` with what they were proven to make; raises MismatchError where that is nothing."""
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
    """Blanks are taken off each text of a user, or off all that a turn holds: small conversations do not
    tell."""
    yield settings
    if rule := settings.get("strip", {}).get("user"):
        yield settings | {"strip": settings["strip"] | {"user": rule | {"whole": True}}}


def _holds(template: ChatTemplate, settings: dict[str, Any], talks: list[list[Turn]]) -> bool:
    try:
        chat_proof.prove(template, settings, talks)
    except (MismatchError, RenderError):
        return False
    return True

"""Chat templates to plain pieces: the device has no template engine.

In: a checkpoint's chat template (Jinja). Out: the text pieces that ``runtime.prompt`` puts together, read off from what
the template makes of small conversations and then proven on larger ones. What pieces cannot express is refused.
"""

from __future__ import annotations

from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox

from foveate.engines.errors import UserError
from foveate.export.checkpoint import Source

__all__ = ["LLAVA", "pieces", "render"]

LLAVA: dict[str, Any] = {
    "before": "",
    "roles": {"system": "", "user": "USER: ", "assistant": "ASSISTANT: "},
    "image": "<image>\n",
    "after_text": " ",
    "end": "",
    "generation": "ASSISTANT:",
}
"""LLaVA-1.5's format, for checkpoints without a template."""

_A, _B = "\x01", "\x02"  # texts that no template holds, and none strips

Message = tuple[str, int, str | None]  # role, number of pictures, text


def pieces(
    source: Source, image_token: str, bos: str | None, default: dict[str, Any] | None = None
) -> dict[str, Any]:
    """The settings ``before``, ``roles``, ``image``, ``after_text``, ``end``, ``generation`` of ``runtime.prompt``.

    ``default`` is the format of a checkpoint without a template. Where roles end differently from the user's, ``closing`` maps
    them to what follows their text in place of ``after_text`` and ``end``. Raises UserError when the template cannot be
    rendered or says more than pieces can.
    """
    template = _find(source)
    if template is None:
        return default or LLAVA | {"image": f"{image_token}\n"}
    try:
        return _derive(_Template(template, bos or ""), image_token)
    except (jinja2.TemplateError, TypeError, KeyError, _IrregularError) as error:
        raise UserError(
            f"{source.label}: this chat template is not supported | {error} | expected LLaVA's form: a piece of "
            "text before each message, pictures before its text | use another checkpoint"
        ) from error


def render(settings: dict[str, Any], messages: list[Message], generation: bool) -> str:
    """The prompt that the pieces make, as ``runtime.prompt`` puts it together."""
    text = settings["before"] if not messages or messages[0][0] != "system" else ""
    closing = settings.get("closing", {})
    for role, images, words in messages:
        text += settings["roles"][role] + settings["image"] * images + (words or "")
        after = settings["after_text"] if words is not None else ""
        text += closing.get(role, after + settings["end"])
    return text + (settings["generation"] if generation else "")


class _IrregularError(Exception):
    pass


class _Generation(jinja2.ext.Extension):
    """``{% generation %}`` marks the assistant's words for training; here it is only what it holds."""

    tags = {"generation"}  # noqa: RUF012  (the base class declares it so)

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Template:
    """A chat template in the environment that transformers gives it."""

    def __init__(self, text: str, bos: str) -> None:
        environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, "jinja2.ext.loopcontrols"]
        )
        environment.globals["raise_exception"] = _refuse
        self._template, self._bos = environment.from_string(text), bos

    def __call__(self, messages: list[Message], generation: bool = False) -> str:
        told = []
        for role, images, words in messages:
            content: list[dict[str, str]] = [{"type": "image"}] * images
            content += [{"type": "text", "text": words}] if words is not None else []
            told.append({"role": role, "content": content})
        text = self._template.render(messages=told, add_generation_prompt=generation, bos_token=self._bos)
        return text.removeprefix(self._bos)  # the tokenizer's own, which the runtime puts in front


def _refuse(message: str) -> None:
    raise jinja2.TemplateError(message)


def _find(source: Source) -> str | None:
    path = source.file("chat_template.jinja")
    if path is not None:
        return path.read_text(encoding="utf-8")
    for name in ("chat_template.json", "processor_config.json", "tokenizer_config.json"):
        found = (source.json(name) or {}).get("chat_template")
        if isinstance(found, list):  # several, by name
            found = next((each["template"] for each in found if each["name"] == "default"), None)
        if found:
            return found
    return None


def _derive(template: _Template, image_token: str) -> dict[str, Any]:
    first = template([("user", 0, _A)])
    two = template([("user", 0, _A), ("user", 0, _B)])
    before_a, after_a = _around(first, _A)
    between, after_b = _around(two.removeprefix(before_a + _A), _B)
    # Between the texts stand the end of the first turn and the opening of the second.
    user = between.removeprefix(after_a)
    if between != after_a + user or after_b != after_a or not before_a.endswith(user):
        raise _IrregularError(f"two turns are no repetition of one: {two!r}")
    image = _around(template([("user", 1, _A)]), _A)[0].removeprefix(before_a)
    end = template([("user", 1, None)]).removeprefix(before_a + image)
    reply = template([("user", 0, _A), ("assistant", 0, _B)]).removeprefix(first)
    turns = {"assistant": _around(reply, _B)} | _system(template)
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
    settings["generation"] = template([("user", 0, _A)], True).removeprefix(first)
    _prove(template, settings, image_token)
    return settings


def _around(text: str, mark: str) -> tuple[str, str]:
    before, found, after = text.rpartition(mark)
    if not found:
        raise _IrregularError(f"{mark!r} is not in {text!r}")
    return before, after


def _system(template: _Template) -> dict[str, tuple[str, str]]:
    """What opens and closes a system turn; nothing where the template does not take one."""
    try:
        return {"system": _around(template([("system", 0, _A)]), _A)}
    except (jinja2.TemplateError, _IrregularError):
        return {}


def _prove(template: _Template, settings: dict[str, Any], image_token: str) -> None:
    if settings["image"].count(image_token) != 1:
        raise _IrregularError(f"a picture is {settings['image']!r}, which does not hold one {image_token!r}")
    talk: list[Message] = [("user", 2, "What?"), ("assistant", 0, "It."), ("user", 1, None)]
    talks = [talk, [*talk, ("assistant", 0, "Yes."), ("user", 1, "Why?")]]
    if "system" in settings["roles"]:
        talks.append([("system", 0, "Be brief."), *talk])
    for messages in talks:
        for generation in (False, True):
            theirs, ours = template(messages, generation), render(settings, messages, generation)
            if theirs != ours:
                raise _IrregularError(f"it makes {theirs!r}, pieces make {ours!r}")

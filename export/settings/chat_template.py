"""A checkpoint's chat template (Jinja), found and rendered as transformers' processors do."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox

from foveate.engines.errors import UserError
from foveate.export.checkpoints.directory import Source
from foveate.runtime.text.chat_format import date_piece
from foveate.runtime.text.turns import Turn

__all__ = ["ChatTemplate", "RenderError", "find"]


class RenderError(Exception):
    """The template refuses a conversation, or cannot be rendered."""


class ChatTemplate:
    """A chat template; ``template(turns)`` returns the prompt.

    ``constants`` are the strings in the template's code. ``dated`` is True once it has asked for the date.
    Raises RenderError for text that is no Jinja template.
    """

    def __init__(self, text: str, special: dict[str, str]) -> None:
        """Parse ``text``. ``special`` are the special tokens by name; templates use them as variables."""
        environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _refuse
        environment.globals["strftime_now"] = self._date
        self._special = special
        self._now: datetime | None = None
        self.dated = False
        try:
            self._template = environment.from_string(text)
            nodes = environment.parse(text).find_all(jinja2.nodes.Const)
        except jinja2.TemplateError as error:
            raise RenderError(f"it is no Jinja template: {error}") from error
        self.constants = sorted({node.value for node in nodes if isinstance(node.value, str)})

    def __call__(self, turns: Sequence[Turn], generation: bool = False, now: datetime | None = None) -> str:
        """Return the prompt. If ``now`` is None, ``chat_format.date_piece`` takes the place of the date."""
        messages: list[dict[str, Any]] = []
        for turn in turns:
            parts = turn.parts
            content = [
                {"type": "text", "text": p} if isinstance(p, str) else {"type": "image"} for p in parts
            ]
            messages.append({"role": turn.role, "content": content})
        self._now = now
        known = {"messages": messages, "add_generation_prompt": generation, "tools": None, "documents": None}
        try:
            return self._template.render(**self._special, **known)
        except (
            jinja2.TemplateError,
            TypeError,
            ValueError,
            AttributeError,
            LookupError,
            ArithmeticError,
        ) as error:
            raise RenderError(f"it stops at a conversation of {_roles(turns)}: {error}") from error

    def _date(self, form: str) -> str:
        self.dated = True
        return self._now.strftime(form) if self._now else date_piece(form)


def find(source: Source) -> tuple[str, str] | None:
    """Return the chat template and the name of its file, or None if the checkpoint has none.

    Files are searched in transformers' order. Raises UserError when a file has several templates and none is
    called "default".
    """
    for name in ("processor_config.json", "chat_template.json"):
        if found := (source.json(name) or {}).get("chat_template"):
            return _default(found, name, source), name
    for name in ("chat_template.jinja", "additional_chat_templates/default.jinja"):
        if (path := source.file(name)) is not None:
            return path.read_text(encoding="utf-8"), name
    name = "tokenizer_config.json"
    found = (source.json(name) or {}).get("chat_template")
    return (_default(found, name, source), name) if found else None


def _default(found: Any, name: str, source: Source) -> str:
    if isinstance(found, list):
        found = {each["name"]: each["template"] for each in found}
    if not isinstance(found, dict):
        return found
    if "default" not in found:
        raise UserError(
            f"{source.label}: none of its chat templates is the default "
            f"| {name} has {', '.join(sorted(found))} "
            '| rename the template to use to "default"'
        )
    return found["default"]


class _Generation(jinja2.ext.Extension):
    """The tag ``{% generation %}``, which marks the assistant's words for training. Renders its content."""

    tags = {"generation"}  # noqa: RUF012  (the base class declares it so)

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _to_json(value: Any, ensure_ascii: bool = False, indent: Any = None, **options: Any) -> str:
    """Return JSON without HTML escapes, which Jinja's own filter adds."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **options)


def _refuse(message: str) -> None:
    raise jinja2.TemplateError(message)


def _roles(turns: Sequence[Turn]) -> str:
    return ", ".join(turn.role for turn in turns)

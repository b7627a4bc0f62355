"""A row of the tables of keys (``checkpoint_keys``), and how rows are written."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

__all__ = ["FamilyKeys", "Key", "Table", "irrelevant", "refused", "refused_elsewhere", "used"]


@dataclass(frozen=True)
class Key:
    """``why``: what a used key does, why an irrelevant one changes no answer, what is missing for a refused one.

    Values in ``harmless`` and null change nothing; so does a list that has no others. ``by`` names the module that
    refuses other values, where this table leaves that to it.
    """

    status: Literal["used", "irrelevant", "refused"]
    why: str
    harmless: tuple[Any, ...] = ()
    by: str = ""

    def refuses(self, value: Any) -> bool:
        if self.status != "refused" or self.by or value is None or self._is_harmless(value):
            return False
        return not (isinstance(value, list) and all(map(self._is_harmless, value)))

    def _is_harmless(self, value: Any) -> bool:
        """Equal to one that is; false is not 0 here."""
        numbers = (int, float)
        return any(
            value == each and (type(value) is type(each) or {type(value), type(each)} <= {*numbers})
            for each in self.harmless
        )

    @property
    def expected(self) -> str:
        return " or ".join(map(str, self.harmless)) if self.harmless else "null"

    @property
    def told(self) -> str:
        """For the documentation."""
        if self.status != "refused":
            return self.why
        return f"{self.why}; harmless: {self.expected}" if not self.by else self.why


Table = dict[str, Key]


@dataclass(frozen=True)
class FamilyKeys:
    """The tables of a family's settings files: ``KEYS`` in its file in ``models``. Those of ``config_keys`` and
    ``processor_keys`` are for known parts; a family adds keys of its own with ``|``."""

    top: Table
    """Keys of ``config.json`` itself."""

    text: str
    """The ``model_type`` of a ``text_config`` that names none: a key of ``config_keys.TEXT``."""

    vision: Table
    """Keys of ``vision_config``."""

    image: Table
    """Keys of the image processor."""

    tokenizer: Table
    """Keys of ``tokenizer_config.json``."""

    flat: bool = False
    """Whether keys of the ``text_config`` may stand at the top of ``config.json``."""


def used(why: str, *names: str) -> Table:
    return dict.fromkeys(names, Key("used", why))


def irrelevant(why: str, *names: str) -> Table:
    return dict.fromkeys(names, Key("irrelevant", why))


def refused(why: str, harmless: tuple[Any, ...], *names: str) -> Table:
    return dict.fromkeys(names, Key("refused", why, harmless))


def refused_elsewhere(why: str, by: str, *names: str) -> Table:
    return dict.fromkeys(names, Key("refused", why, by=by))

"""The rows of the tables of keys (see ``checkpoint_keys``), and functions that make them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

__all__ = ["FamilyKeys", "Key", "Status", "Table", "irrelevant", "refused", "refused_elsewhere", "used"]


Status = Literal["used", "irrelevant", "refused"]


@dataclass(frozen=True)
class Key:
    """The row of one key.

    ``why`` says what a used key does, why an irrelevant key changes no answer, or why a key is refused.
    Values in ``harmless``, null, and lists of these change nothing. If ``by`` is set, it names the module
    that refuses values in place of this table.
    """

    status: Status
    why: str
    harmless: tuple[Any, ...] = ()
    by: str = ""

    def refuses(self, value: Any) -> bool:
        """Return True if this table refuses the key with that value."""
        if self.status != "refused" or self.by or value is None or self._is_harmless(value):
            return False
        return not (isinstance(value, list) and all(map(self._is_harmless, value)))

    def _is_harmless(self, value: Any) -> bool:
        """Return True if ``value`` equals a harmless one. False and 0 are different values here."""
        numbers = (int, float)
        return any(
            value == each and (type(value) is type(each) or {type(value), type(each)} <= {*numbers})
            for each in self.harmless
        )

    @property
    def expected(self) -> str:
        """The harmless values, for messages."""
        return " or ".join(map(str, self.harmless)) if self.harmless else "null"

    @property
    def told(self) -> str:
        """The text of the documentation's last column."""
        if self.status != "refused":
            return self.why
        return f"{self.why}; harmless: {self.expected}" if not self.by else self.why


Table = dict[str, Key]


@dataclass(frozen=True)
class FamilyKeys:
    """The tables of a family's settings files: ``KEYS`` in its file in ``models``.

    ``config_keys`` and ``processor_keys`` have tables for known parts. A family adds keys of its own with
    ``|``.
    """

    top: Table
    """Keys of ``config.json`` itself."""

    text: str
    """The default ``model_type`` of a ``text_config``: a key of ``config_keys.TEXT``."""

    vision: Table
    """Keys of ``vision_config``."""

    image: Table
    """Keys of the image processor."""

    tokenizer: Table
    """Keys of ``tokenizer_config.json``."""

    flat: bool = False
    """True if keys of the ``text_config`` may be at the top of ``config.json``."""


def used(why: str, *names: str) -> Table:
    """Return rows of keys that are used."""
    return dict.fromkeys(names, Key("used", why))


def irrelevant(why: str, *names: str) -> Table:
    """Return rows of keys that change no answer."""
    return dict.fromkeys(names, Key("irrelevant", why))


def refused(why: str, harmless: tuple[Any, ...], *names: str) -> Table:
    """Return rows of keys that are refused unless their values are ``harmless``."""
    return dict.fromkeys(names, Key("refused", why, harmless))


def refused_elsewhere(why: str, by: str, *names: str) -> Table:
    """Return rows of keys whose values the module ``by`` refuses."""
    return dict.fromkeys(names, Key("refused", why, by=by))

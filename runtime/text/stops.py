"""The text of an answer as it grows, up to the first stop string.

Token ids become text as soon as the text is settled. Text that a later token can still change is held back
(``chat_prompt.Detokenizer``), and so is text that may be the beginning of a stop string.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from foveate.engines.errors import UserError
from foveate.runtime.text.chat_prompt import Detokenizer

__all__ = ["AnswerText", "StopStrings", "without_special"]


@dataclass(frozen=True)
class StopStrings:
    """Stop strings: ``texts`` are searched in the answer, ``ids`` are those that are special tokens."""

    texts: tuple[str, ...]
    ids: frozenset[int]

    @classmethod
    def of(
        cls, stops: Sequence[str], special: Mapping[str, int], *, keep_special: bool = False
    ) -> StopStrings:
        """Return the stop strings ``stops``. ``special`` holds the ids of special tokens.

        Raises UserError for a text with a special token in it, unless ``keep_special`` puts such tokens into
        the text.
        """
        texts = tuple(stop for stop in stops if stop not in special)
        for stop in texts if not keep_special else ():
            if inside := next((token for token in special if token in stop), None):
                raise UserError(
                    f"wrong stop {stop!r} | it holds the special token {inside}, which does not stand in the "
                    "text | give text without special tokens, or the token alone, or keep special tokens",
                    code=2,
                )
        return cls(texts, frozenset(special[stop] for stop in stops if stop in special))


class AnswerText:
    """The text of an answer. ``stop`` is the stop string that ended it, None until then.

    The blank between "ASSISTANT:" and the answer belongs to the chat template, which adds it again in later
    turns. It is not part of the text.
    """

    def __init__(self, detokenizer: Detokenizer, stops: Sequence[str] = ()) -> None:
        self._detokenizer, self._stops = detokenizer, tuple(stops)
        self._held = ""
        self._said: list[str] = []
        self.stop: str | None = None

    @property
    def text(self) -> str:
        """Return the text that was returned so far."""
        return "".join(self._said)

    def step(self, token: int) -> str:
        """Return the text that this token settles, "" if there is none yet.

        Sets ``stop`` if it completes a stop string.
        """
        settled = self._held + self._detokenizer.step(token)
        if not self._stops:
            return self._say(settled)
        whole = settled + self._detokenizer.open
        found = [(at, stop) for stop in self._stops if (at := whole.find(stop)) >= 0]
        if found:
            at, self.stop = min(found)
            return self._say(whole[:at])
        sure = len(settled) - max(_begun(settled, stop) for stop in self._stops)
        self._held = settled[sure:]
        return self._say(settled[:sure])

    def finish(self) -> str:
        """Return the text still held back at the end of the answer, "" after a stop string."""
        return "" if self.stop is not None else self._say(self._held + self._detokenizer.finish())

    def _say(self, piece: str) -> str:
        piece = piece if self._said else piece.lstrip()
        if piece:
            self._said.append(piece)
        return piece


def without_special(
    detokenizer: Detokenizer, tokens: Sequence[int], stop: str | None, special: Iterable[str]
) -> str:
    """Return the text of a complete answer without special tokens, up to ``stop``.

    ``detokenizer`` leaves special tokens out. ``stop`` is the stop string that ended the answer, or None. It
    was found in the text with the ``special`` tokens. The last token completed it, so it cannot be found at
    an earlier place in the text.
    """
    before = "".join([*map(detokenizer.step, tokens[:-1]), detokenizer.open])
    whole = before.removesuffix(detokenizer.open)
    whole += "".join([*map(detokenizer.step, tokens[-1:]), detokenizer.finish()])
    if stop is None:
        return whole.lstrip()
    for token in special:
        stop = stop.replace(token, "")
    grown = len(whole) > len(before)  # otherwise the last token is a special one
    at = whole.find(stop, max(0, len(before) - len(stop) + grown))
    return whole[: at if at >= 0 else None].lstrip()


def _begun(text: str, stop: str) -> int:
    """Return how many characters at the end of ``text`` are the beginning of ``stop``."""
    longest = min(len(text), len(stop) - 1)
    return next((size for size in range(longest, 0, -1) if text.endswith(stop[:size])), 0)

"""Chat: answer the turns of a conversation. One kv cache holds what the turns share."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import replace
from datetime import datetime
from typing import Any

from foveate.engines.errors import UserError
from foveate.runtime.answer import Answer, Stream
from foveate.runtime.answering import PrunedImage, answer, prune_images
from foveate.runtime.clock import Clock
from foveate.runtime.llm.budget import Keep
from foveate.runtime.llm.generation import Options
from foveate.runtime.model import LoadedModel
from foveate.runtime.request import Images, PromptImage, Request, check, image_list, open_images
from foveate.runtime.text.stops import without_special
from foveate.runtime.text.turns import Prompt, Turn, user_turn

__all__ = ["Chat"]


class Chat:
    """A conversation with one kv cache. Each image is pruned once, for the question of its own turn.

    A turn whose answer was broken off (by an error, Ctrl-C or ``Stream.close``) does not become part of the
    conversation; the cache keeps its rows. Only one answer can be generated at a time: a question is refused
    while the stream of another one is open.
    """

    def __init__(
        self, model: LoadedModel, system: str | None = None, started: datetime | None = None
    ) -> None:
        self._model = model
        self._started = started or datetime.now()
        self._decoder = model.decoder()
        self._shown: list[PrunedImage] = []
        self._answering = False
        self.turns: list[Turn] = [] if system is None else [Turn("system", system)]

    def ask(
        self,
        text: Prompt,
        image: Images = None,
        *,
        reprune: bool = False,
        keep: Keep = None,
        options: Options | None = None,
        **asked: Any,  # fields of Options
    ) -> Answer:
        """Return the answer to the next turn: ``text`` with any new images.

        Arguments as for ``Pipeline.generate``.

        ``reprune`` prunes every image of the conversation again for this question, with ``keep`` if it is
        given. The kv cache then starts over.
        """
        return self.stream(text, image, reprune=reprune, keep=keep, options=options, **asked).finish()

    def stream(
        self,
        text: Prompt,
        image: Images = None,
        *,
        reprune: bool = False,
        keep: Keep = None,
        options: Options | None = None,
        **asked: Any,  # fields of Options
    ) -> Stream:
        """Return the answer to the next turn as a stream of pieces of text. Arguments as for ``ask``.

        Raises UserError from this call, before anything runs, if an argument is out of range, the prompt does
        not fit into the model, or the stream of another question is open.
        """
        self._require_idle()
        new = image_list(image)
        turns = [*self.turns, user_turn(text, len(new))]
        wanted = replace(options or Options(), **asked)
        images = open_images(self._model, new, keep)
        images = self._earlier(reprune, keep) + images
        request = check(self._model, self._decoder, turns, images, wanted, self._started)
        return Stream(self._answer(request, turns))

    def _earlier(self, reprune: bool, keep: Keep) -> list[PromptImage]:
        """Return the images of earlier turns for the next prompt. Raises UserError."""
        if not reprune:
            return [shown.again() for shown in self._shown]
        budget = self._model.vision.budget
        return [
            shown.again(shown.keep if keep is None else budget(keep, shown.features.layout))
            for shown in self._shown
        ]

    def _answer(self, request: Request, turns: list[Turn]) -> Generator[str, None, Answer]:
        """Answer, and make the turn part of the conversation."""
        self._require_idle()
        self._answering = True
        try:
            clock = Clock()
            images = prune_images(self._model, request, clock)
            found = yield from answer(self._model, self._decoder, request, images, clock)
        finally:
            self._answering = False
        # a later turn would read special tokens as ordinary text
        words = self._without_special(found) if request.generation.keep_special else found.text
        self._shown, self.turns = images, [*turns, Turn("assistant", words)]
        return found

    def _require_idle(self) -> None:
        if self._answering:
            raise UserError(
                "this conversation is still answering | the stream of another question is open "
                "| read it to its end, or close it",
                code=2,
            )

    def _without_special(self, found: Answer) -> str:
        """Return an answer's text without special tokens."""
        tokenizer = self._model.tokenizer
        stop = found.stop if isinstance(found.stop, str) else None  # a token id is not in ``tokens``
        return without_special(tokenizer.detokenizer(), found.tokens, stop, tokenizer.special)

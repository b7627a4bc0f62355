"""Results of a prompt: the answer with its timings, and the stream of its pieces."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass

import numpy as np

from foveate.runtime.images.token_layout import Layout
from foveate.runtime.images.view import View

__all__ = ["Answer", "Stream", "Timings"]


@dataclass(frozen=True)
class Timings:
    """Times of one answer in seconds, and a few counts.

    ``first_token`` counts from the first read of the stream. ``prefill`` includes in-LLM pruning and the
    choice of the first token. ``tokens_per_second`` is the speed of decoding alone, 0 if nothing was decoded
    after the first token. ``reused_rows`` of the ``prompt_rows`` were in the kv cache already.
    ``cache_bytes_...`` are bytes.
    """

    preprocess: float
    vision: float
    prune: float
    prefill: float
    decode: float
    first_token: float
    total: float
    tokens_per_second: float
    prompt_rows: int
    reused_rows: int
    cache_bytes_allocated: int
    cache_bytes_used: int


@dataclass(frozen=True)
class Answer:
    """An answer, and what became of the images of its prompt.

    * ``text``: the answer, without the stop string that ended it.
    * ``tokens``: its token ids, without the stop id, but with the tokens of a stop string that ended it.
    * ``finish``: "stop", or "length" if the answer reached its longest length.
    * ``stop``: the token id or the stop string that ended the answer; None if its length did.
    * ``timings``: see ``Timings``.

    The other fields have one entry per image of the prompt:

    * ``kept`` int64 [R]: the image's visual tokens that stayed to the end, -1 for a merged row.
    * ``stages``: visual tokens left after each stage that prunes, by its name ("pruner" is the pre-LLM
      pruner; "pruner.0" and so on are in-LLM pruners).
    * ``owners`` int64 [N]: the row that each visual token went into before the language model, -1 for none.
      None for methods that do not merge.
    * ``layouts``: the visual tokens before pruning, and where they lie
      (``foveate.runtime.images.token_layout``).
    * ``views``: the image as the model sees it. Maps kept tokens, and coordinates in the text, to the
      original image (``foveate.runtime.images.view``).
    """

    text: str
    tokens: list[int]
    kept: list[np.ndarray]
    finish: str
    timings: Timings
    stages: list[dict[str, np.ndarray]]
    owners: list[np.ndarray | None]
    layouts: list[Layout]
    views: list[View]
    stop: int | str | None = None


class Stream(Iterator[str]):
    """Pieces of an answer's text, in order. Work starts with the first ``next``.

    ``answer`` is available after the last piece.
    """

    def __init__(self, work: Generator[str, None, Answer]) -> None:
        self._work = work
        self._answer: Answer | None = None

    def __next__(self) -> str:
        try:
            return next(self._work)
        except StopIteration as end:
            self._answer = end.value or self._answer
            raise StopIteration from None

    def close(self) -> None:
        """Stop generating. The answer stays incomplete."""
        self._work.close()

    @property
    def answer(self) -> Answer:
        """Return the answer. Raises RuntimeError before the last piece."""
        if self._answer is None:
            raise RuntimeError("the answer is not complete: use up the stream first")
        return self._answer

    def finish(self) -> Answer:
        """Generate the rest, and return the whole answer."""
        for _ in self:
            pass
        return self.answer

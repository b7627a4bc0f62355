"""What comes out of a prompt: the answer with its timings, or a stream of its pieces."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from foveate.runtime.images.token_layout import Layout
from foveate.runtime.images.view import View

__all__ = ["Answer", "Clock", "Stream", "Timings"]


@dataclass(frozen=True)
class Timings:
    """Seconds, except where the name says otherwise. ``first_token`` counts from the first reading of the stream;
    ``prefill`` has in it what prunes inside the language model, and the first token; ``tokens_per_second`` is of decoding alone
    and 0 when nothing was decoded after the first token. ``reused_rows`` of ``prompt_rows`` were cached."""

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
    """``finish`` is "stop" or "length". ``stop`` is the token id or the stop string that ended the answer, None for length.
    ``tokens`` are without the stop id; of an answer that a stop string ended they are with it, and ``text`` is without.
    The others have an entry per picture of the prompt.

    ``kept`` [R] int64: which of the picture's tokens stayed to the end, -1 for a merged row. ``stages``: by the name of each stage
    that prunes ("pruner" before the language model, "pruner.0" and so on inside it), the tokens that it left. ``owners`` [N] int64:
    the row that each token went into before the language model, -1 for none; None for methods that do not merge. ``layouts``:
    how many tokens there were, and where they lie (``runtime.layout``). ``views``: the image as the model sees it; maps coordinates
    in the text and kept tokens to the original (``runtime.view``).
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


class Clock:
    """Seconds per stage, and since it was made."""

    def __init__(self) -> None:
        self._start = time.perf_counter()
        self.seconds = {"preprocess": 0.0, "vision": 0.0, "prune": 0.0, "prefill": 0.0, "decode": 0.0}

    @contextmanager
    def measure(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] += time.perf_counter() - start

    @property
    def elapsed(self) -> float:
        return time.perf_counter() - self._start


class Stream(Iterator[str]):
    """Pieces of text as they settle; ``answer`` is there once they are used up. Work starts at the first ``next``."""

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
        """End the answer here."""
        self._work.close()

    @property
    def answer(self) -> Answer:
        if self._answer is None:
            raise RuntimeError("the answer is not complete: use up the stream first")
        return self._answer

    def finish(self) -> Answer:
        """Run to the end; the whole answer."""
        for _ in self:
            pass
        return self.answer

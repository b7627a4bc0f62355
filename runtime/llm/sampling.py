"""Sampling: choose a token id from logits.

The order is that of Hugging Face's ``generate``: temperature, then top-k, then top-p among the tokens that
are left.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from foveate.engines.errors import UserError
from foveate.runtime.llm.logits import Logits

__all__ = ["LogitsChange", "Sampler", "Sampling", "misfit", "wrong"]


_RANGES: dict[str, tuple[Callable[[float], bool], str]] = {
    "temperature": (lambda value: 0 <= value < float("inf"), "0 (greedy) or more"),
    "top_p": (lambda value: 0 <= value <= 1, "a number from 0 to 1"),
    "top_k": (lambda value: value >= 1, "1 or more"),
}
"""Values with which samples can be drawn, as a test and in words. NaN fails every comparison."""


def misfit(name: str, value: float) -> str | None:
    """Return the values expected of ``temperature``, ``top_p`` or ``top_k``.

    None if ``value`` is one of them.
    """
    fits, expected = _RANGES[name]
    return None if fits(value) else expected


@dataclass(frozen=True)
class Sampling:
    """Settings of sampling. Raises UserError for values out of range.

    ``temperature`` 0 is greedy. ``top_k`` draws among the k likeliest tokens. ``top_p`` draws among the
    smallest set of likeliest tokens whose probabilities add up to p; 0 leaves only the likeliest. ``seed``
    None uses a fresh seed.
    """

    temperature: float = 0.0
    top_p: float | None = None
    top_k: int | None = None
    seed: int | None = None

    def __post_init__(self) -> None:
        for name in _RANGES:
            value = getattr(self, name)
            if value is not None and (expected := misfit(name, value)):
                raise wrong(name.replace("_", "-"), value, expected)
        if self.seed is not None and self.seed < 0:
            raise wrong("seed", self.seed, "0 or more")


def wrong(name: str, got: object, expected: str) -> UserError:
    """Return the error for an option that is out of range."""
    return UserError(f"wrong {name} | got {got}, expected {expected} | leave it out for the default", code=2)


class LogitsChange(Protocol):
    """Changes logits before a token is chosen, see ``penalties.Penalties``."""

    def at(self, length: int) -> Sequence[object]:
        """Return the steps for the token after an answer of ``length`` tokens, none if nothing changes."""

    def __call__(self, logits: np.ndarray, answer: Sequence[int]) -> np.ndarray:
        """Return ``logits`` [V] of the token after ``answer``, changed: float32 [V], -inf if excluded."""


class Sampler:
    """Chooses the tokens of one answer.

    The same seed gives the same draws. ``penalties`` change the logits first.
    """

    def __init__(self, sampling: Sampling, penalties: LogitsChange | None = None) -> None:
        self.sampling, self._penalties = sampling, penalties
        self._random = np.random.default_rng(sampling.seed)

    def __call__(self, logits: Logits, answer: Sequence[int] = ()) -> int:
        """Return the token id that follows the tokens ``answer``.

        Raises NotFiniteError if the largest logit is not finite, and UserError if penalties leave no token.
        """
        if self._penalties is not None and self._penalties.at(len(answer)):
            # changed logits have other candidates than those that the engine picked
            logits = Logits(self._penalties(logits.finite(), answer))
        if self.sampling.temperature == 0:
            return int(logits.largest(1)[0][0])
        ids, chances = self.distribution(logits)
        drawn = np.searchsorted(np.cumsum(chances), self._random.random(), side="right")
        return int(ids[drawn.clip(max=len(ids) - 1)])

    def distribution(self, logits: Logits) -> tuple[np.ndarray, np.ndarray]:
        """Return the token ids that may be drawn, likeliest first, and their float64 probabilities."""
        ids, values = logits.largest(self.sampling.top_k)
        said = np.count_nonzero(values > -np.inf)  # suppressed tokens come last
        ids, values = ids[:said], values[:said].astype(np.float64)
        with np.errstate(over="ignore"):  # with a temperature near 0 all but the largest become -inf
            chances = np.exp((values - values[0]) / self.sampling.temperature)
        chances /= chances.sum()
        if self.sampling.top_p is not None:
            # the likeliest token has nothing before it, so it always stays
            before = np.cumsum(chances) - chances
            count = max(1, int(np.count_nonzero(before < self.sampling.top_p)))
            ids, chances = ids[:count], chances[:count] / chances[:count].sum()
        return ids, chances

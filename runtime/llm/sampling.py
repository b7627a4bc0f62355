"""Sampling: logits go in, a token id comes out.

Temperature first, then top-k, then top-p on what is left, as Hugging Face's ``generate`` orders them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from foveate.engines.errors import UserError
from foveate.runtime.llm.logits import Logits

if TYPE_CHECKING:
    from foveate.runtime.llm.penalties import Penalties

__all__ = ["Sampler", "Sampling", "misfit", "wrong"]


_RANGES: dict[str, tuple[Callable[[float], bool], str]] = {
    "temperature": (lambda value: 0 <= value < float("inf"), "0 (greedy) or more"),
    "top_p": (lambda value: 0 <= value <= 1, "a number from 0 to 1"),
    "top_k": (lambda value: value >= 1, "1 or more"),
}
"""What samples can be drawn with; NaN fails every comparison."""


def misfit(name: str, value: float) -> str | None:
    """What was expected of ``temperature``, ``top_p`` or ``top_k`` in place of ``value``; None where it is in range."""
    fits, expected = _RANGES[name]
    return None if fits(value) else expected


@dataclass(frozen=True)
class Sampling:
    """``temperature`` 0 is greedy. ``top_k`` keeps the k likeliest tokens; ``top_p`` the fewest, likeliest first, whose
    probabilities reach p together, and 0 the likeliest alone. ``seed`` None draws a fresh one. Raises UserError for values out of range."""

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
    """The error for an option out of range."""
    return UserError(f"wrong {name} | got {got}, expected {expected} | leave it out for the default", code=2)


class Sampler:
    """Chooses token after token of one answer; the same seed gives the same draws. ``penalties`` change logits before."""

    def __init__(self, sampling: Sampling, penalties: Penalties | None = None) -> None:
        self.sampling, self._penalties = sampling, penalties
        self._random = np.random.default_rng(sampling.seed)

    def __call__(self, logits: Logits, answer: Sequence[int] = ()) -> int:
        """The token id that follows the tokens ``answer``. Raises NotFiniteError where the largest logit is no number, and
        UserError where penalties leave no token."""
        if self._penalties is not None and self._penalties.at(len(answer)):
            logits = Logits(
                self._penalties(logits.finite(), answer)
            )  # an engine's candidates are of other values
        if self.sampling.temperature == 0:
            return int(logits.largest(1)[0][0])
        ids, chances = self.distribution(logits)
        drawn = np.searchsorted(np.cumsum(chances), self._random.random(), side="right")
        return int(ids[drawn.clip(max=len(ids) - 1)])

    def distribution(self, logits: Logits) -> tuple[np.ndarray, np.ndarray]:
        """The token ids that may be drawn, likeliest first, and their probabilities (float64, sum 1)."""
        ids, values = logits.largest(self.sampling.top_k)
        said = np.count_nonzero(values > -np.inf)  # what is suppressed stands last
        ids, values = ids[:said], values[:said].astype(np.float64)
        with np.errstate(over="ignore"):  # a temperature near 0: what is not the largest gets -inf
            chances = np.exp((values - values[0]) / self.sampling.temperature)
        chances /= chances.sum()
        if self.sampling.top_p is not None:
            # the likeliest token has nothing before it and always stays
            before = np.cumsum(chances) - chances
            count = max(1, int(np.count_nonzero(before < self.sampling.top_p)))
            ids, chances = ids[:count], chances[:count] / chances[:count].sum()
        return ids, chances

"""Sampling: logits go in, a token id comes out.

Temperature first, then top-k, then top-p on what is left, as Hugging Face's ``generate`` orders them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from foveate.engines.errors import UserError

__all__ = ["Sampler", "Sampling"]


@dataclass(frozen=True)
class Sampling:
    """``temperature`` 0 is greedy. ``top_k`` keeps the k likeliest tokens; ``top_p`` the fewest, likeliest first, whose
    probabilities reach p together. ``seed`` None draws a fresh one. Raises UserError for values out of range."""

    temperature: float = 0.0
    top_p: float | None = None
    top_k: int | None = None
    seed: int | None = None

    def __post_init__(self) -> None:
        # "not in range" rather than "out of range": NaN fails every comparison
        if not 0 <= self.temperature < float("inf"):
            raise _wrong("temperature", self.temperature, "0 (greedy) or more")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise _wrong("top-p", self.top_p, "more than 0, at most 1")
        if self.top_k is not None and self.top_k < 1:
            raise _wrong("top-k", self.top_k, "1 or more")
        if self.seed is not None and self.seed < 0:
            raise _wrong("seed", self.seed, "0 or more")


def _wrong(name: str, got: object, expected: str) -> UserError:
    return UserError(f"wrong {name} | got {got}, expected {expected} | leave it out for the default", code=2)


class Sampler:
    """Draws token after token of one answer; the same seed gives the same draws."""

    def __init__(self, sampling: Sampling) -> None:
        self.sampling = sampling
        self._random = np.random.default_rng(sampling.seed)

    def __call__(self, logits: np.ndarray) -> int:
        """A token id from logits [V]."""
        if self.sampling.temperature == 0:
            return int(logits.argmax())
        ids, chances = self.distribution(logits)
        return int(
            ids[
                np.searchsorted(np.cumsum(chances), self._random.random(), side="right").clip(
                    max=len(ids) - 1
                )
            ]
        )

    def distribution(self, logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The token ids that may be drawn, likeliest first, and their probabilities (float64, sum 1)."""
        scaled = logits.astype(np.float64)
        scaled = (scaled - scaled.max()) / self.sampling.temperature
        ids = np.argsort(-scaled, kind="stable")[: self.sampling.top_k]
        chances = np.exp(scaled[ids])
        chances /= chances.sum()
        if self.sampling.top_p is not None:
            before = (
                np.cumsum(chances) - chances
            )  # the likeliest token has nothing before it and always stays
            count = max(1, int(np.count_nonzero(before < self.sampling.top_p)))
            ids, chances = ids[:count], chances[:count] / chances[:count].sum()
        return ids, chances

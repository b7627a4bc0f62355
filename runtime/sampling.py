"""Sampling: logits go in, a token id comes out. They are copied to the host as far as the settings need them.

Temperature first, then top-k, then top-p on what is left, as Hugging Face's ``generate`` orders them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from foveate.engines import candidates
from foveate.engines.base import Buffer, Feed, host
from foveate.engines.errors import UserError

__all__ = ["Logits", "Sampler", "Sampling"]


@dataclass(frozen=True, eq=False)
class Logits:
    """What is said of the next token, where an engine left it: ``values``, V of them, and in ``top`` maybe the values and the
    ids of the largest (``engines.candidates``)."""

    values: Feed
    top: tuple[Feed, Feed] | None = None

    @classmethod
    def of(cls, outputs: Mapping[str, Buffer]) -> Logits:
        """Those among the outputs of an engine."""
        top = (outputs[candidates.VALUES], outputs[candidates.IDS]) if candidates.VALUES in outputs else None
        return cls(outputs["logits"], top)

    def numpy(self) -> np.ndarray:
        """All of them: [V]."""
        return host(self.values).reshape(-1)

    def largest(self, count: int | None) -> tuple[np.ndarray, np.ndarray]:
        """Ids and values of the ``count`` largest, None for all: largest first, of equal ones the lowest id."""
        if count and self.top and count < self.top[0].shape[-1]:
            values, ids = (host(each).reshape(-1) for each in self.top)
            order = np.lexsort((ids, -values))  # engines may order equal ones as they like
            # and choose among those that equal the smallest, which must therefore not be wanted
            if values[order[count - 1]] > values[order[-1]]:
                return ids[order[:count]], values[order[:count]]
        values = self.numpy()
        if count == 1:
            best = values.argmax()
            return best[None], values[best][None]
        order = np.argsort(-values.astype(np.float32), kind="stable")[:count]
        return order, values[order]


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

    def __call__(self, logits: Logits) -> int:
        """A token id."""
        if self.sampling.temperature == 0:
            return int(logits.largest(1)[0][0])
        ids, chances = self.distribution(logits)
        return int(
            ids[
                np.searchsorted(np.cumsum(chances), self._random.random(), side="right").clip(
                    max=len(ids) - 1
                )
            ]
        )

    def distribution(self, logits: Logits) -> tuple[np.ndarray, np.ndarray]:
        """The token ids that may be drawn, likeliest first, and their probabilities (float64, sum 1)."""
        ids, values = logits.largest(self.sampling.top_k)
        values = values.astype(np.float64)
        chances = np.exp((values - values[0]) / self.sampling.temperature)
        chances /= chances.sum()
        if self.sampling.top_p is not None:
            before = (
                np.cumsum(chances) - chances
            )  # the likeliest token has nothing before it and always stays
            count = max(1, int(np.count_nonzero(before < self.sampling.top_p)))
            ids, chances = ids[:count], chances[:count] / chances[:count].sum()
        return ids, chances

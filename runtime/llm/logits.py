"""Logits: what the language model says of the next token. They are copied to the host as far as somebody asks for them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from foveate.engines import topk_logits as candidates
from foveate.engines.engine import Buffer, Feed, host

__all__ = ["Logits", "NotFiniteError"]


class NotFiniteError(ArithmeticError):
    """The largest logit is NaN or infinite, so that no token can be chosen. ``runtime.finite`` makes words of it."""


@dataclass(frozen=True, eq=False)
class Logits:
    """``values``: V logits, where an engine left them. ``top``: values and ids of the largest, where the engine picked
    them (``engines.candidates``)."""

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

    def finite(self) -> np.ndarray:
        """All of them: [V], -inf allowed. Raises NotFiniteError where the largest is no finite number."""
        values = self.numpy()
        largest = values[values.argmax()]  # of a NaN and anything else, argmax finds the NaN
        if not np.isfinite(largest):
            raise NotFiniteError(f"the largest logit is {largest}")
        return values

    def largest(self, count: int | None) -> tuple[np.ndarray, np.ndarray]:
        """Ids and values of the ``count`` largest, None for all: largest first, of equal ones the lowest id.

        Raises NotFiniteError where the largest is no finite number.
        """
        if count and self.top and count < self.top[0].shape[-1]:
            values, ids = (host(each).reshape(-1) for each in self.top)
            order = np.lexsort((ids, -values))  # engines may order equal ones as they like
            # and choose among those that equal the smallest, which must therefore not be wanted
            if _ordinary(values) and values[order[count - 1]] > values[order[-1]]:
                return ids[order[:count]], values[order[:count]]
        values = self.finite()
        if count == 1:
            best = values.argmax()
            return best[None], values[best][None]
        order = np.argsort(-values.astype(np.float32), kind="stable")[:count]
        return order, values[order]


def _ordinary(candidates: np.ndarray) -> bool:
    """Whether an engine's candidates are finite. What engines pick among NaN is not defined: they may fill up with the lowest
    number that there is."""
    return bool(np.isfinite(candidates).all() and candidates.max() > np.finfo(candidates.dtype).min)

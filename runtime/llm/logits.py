"""Logits of the next token. They are copied to the host only as far as they are needed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from foveate.engines import topk_logits as candidates
from foveate.engines.buffer import Buffer, Feed, host

__all__ = ["Logits", "NotFiniteError"]


class NotFiniteError(ArithmeticError):
    """The largest logit is NaN or infinite, so no token can be chosen.

    ``runtime.finite`` explains it to the user.
    """


@dataclass(frozen=True, eq=False)
class Logits:
    """``values``: V logits, left where the engine put them.

    ``top``: values and ids of the largest logits, if the engine picked them (``engines.topk_logits``).
    """

    values: Feed
    top: tuple[Feed, Feed] | None = None

    @classmethod
    def of(cls, outputs: Mapping[str, Buffer]) -> Logits:
        """Return the logits among the outputs of an engine."""
        top = (outputs[candidates.VALUES], outputs[candidates.IDS]) if candidates.VALUES in outputs else None
        return cls(outputs["logits"], top)

    def numpy(self) -> np.ndarray:
        """Return all logits, [V]."""
        return host(self.values).reshape(-1)

    def finite(self) -> np.ndarray:
        """Return all logits, [V]; -inf is allowed. Raises NotFiniteError if the largest is not finite."""
        values = self.numpy()
        largest = values[values.argmax()]  # argmax returns the place of a NaN if there is one
        if not np.isfinite(largest):
            raise NotFiniteError(f"the largest logit is {largest}")
        return values

    def largest(self, count: int | None) -> tuple[np.ndarray, np.ndarray]:
        """Return ids and values of the ``count`` largest logits, None for all.

        The largest comes first; equal ones are ordered by id. Raises NotFiniteError if the largest is not
        finite.
        """
        if count and self.top and count < self.top[0].shape[-1]:
            values, ids = (host(each).reshape(-1) for each in self.top)
            order = np.lexsort((ids, -values))  # engines order equal logits as they like
            # Engines choose freely among logits equal to the smallest candidate, so those are never returned.
            if _ordinary(values) and values[order[count - 1]] > values[order[-1]]:
                return ids[order[:count]], values[order[:count]]
        values = self.finite()
        if count == 1:
            best = np.array([values.argmax()])
            return best, values[best]
        order = np.argsort(-values.astype(np.float32), kind="stable")[:count]
        return order, values[order]


def _ordinary(candidates: np.ndarray) -> bool:
    """Return whether an engine's candidates are usable.

    Engines may pick anything if there are NaN among the logits, and may fill up with the lowest number of the
    type.
    """
    return bool(np.isfinite(candidates).all() and candidates.max() > np.finfo(candidates.dtype).min)

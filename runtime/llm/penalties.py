"""Penalties: changes of the logits before a token is chosen.

The steps and their order are those of transformers' ``generate``: repetition penalty, no repeated n-grams, no
end below the minimum length, suppressed tokens, tokens suppressed at the beginning. As in transformers, the
tokens of prompt and answer count. An image counts with all its placeholder tokens, no matter how many a
pruner keeps.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

import numpy as np

from foveate.engines.errors import UserError
from foveate.runtime.llm.generation import Generation

__all__ = ["Penalties"]

Step = Callable[[np.ndarray, np.ndarray], None]
"""A function that changes logits float32 [V] in place, given the token ids of prompt and answer int64 [T]."""


class Penalties:
    """The penalties that ``generation`` asks for, for the answer to one prompt.

    ``prompt`` int64 [P] are the prompt's token ids. ``stop_ids`` are the token ids that end an answer.
    """

    def __init__(self, generation: Generation, prompt: np.ndarray, stop_ids: Collection[int]) -> None:
        self._asked, self._prompt = generation, prompt
        self._stop = np.array(sorted(stop_ids), np.int64)

    def at(self, length: int) -> list[Step]:
        """Return the steps for the token after an answer of ``length`` tokens, none if nothing changes."""
        asked, steps = self._asked, []
        if asked.repetition_penalty != 1:
            steps.append(_repetition(asked.repetition_penalty))
        if asked.no_repeat_ngram_size:
            steps.append(_no_repeats(asked.no_repeat_ngram_size))
        if length < asked.min_new_tokens or len(self._prompt) + length < asked.min_length:
            steps.append(_suppress(self._stop))
        if asked.suppress_tokens:
            steps.append(_suppress(np.array(asked.suppress_tokens)))
        if asked.begin_suppress_tokens and not length:
            steps.append(_suppress(np.array(asked.begin_suppress_tokens)))
        return steps

    def __call__(self, logits: np.ndarray, answer: Sequence[int]) -> np.ndarray:
        """Return ``logits`` [V] of the token after ``answer``, changed: float32 [V], -inf if excluded.

        Raises UserError if no token is left, or if a repetition penalty is so extreme that float32 overflows.
        """
        changed = logits.astype(np.float32)
        ids = np.concatenate([self._prompt, np.array(answer, np.int64)])
        with np.errstate(over="ignore", divide="ignore", invalid="ignore"):  # checked below
            for step in self.at(len(answer)):
                step(changed, ids)
        largest = changed.max()
        if np.isnan(largest) or np.isposinf(largest):
            raise UserError(
                f"the repetition penalty {self._asked.repetition_penalty} makes numbers of logits "
                "that float32 cannot hold | expected a number near 1 "
                "| change --repetition-penalty; 1.0 switches it off"
            )
        if np.isneginf(largest):
            raise UserError(
                "no token is left to continue with | all are suppressed, or would repeat an n-gram "
                "| lower --no-repeat-ngram-size, or ask for fewer tokens"
            )
        return changed


def _inside(ids: np.ndarray, logits: np.ndarray) -> np.ndarray:
    """Return the ids that have a logit. An embedding may have more rows than there are logits."""
    return ids[(ids >= 0) & (ids < len(logits))]


def _repetition(penalty: float) -> Step:
    def step(logits: np.ndarray, ids: np.ndarray) -> None:
        seen = _inside(np.unique(ids), logits)
        values, by = logits[seen], np.float32(penalty)
        logits[seen] = np.where(values < 0, values * by, values / by)

    return step


def _no_repeats(size: int) -> Step:
    def step(logits: np.ndarray, ids: np.ndarray) -> None:
        if len(ids) < size:
            return
        windows = np.lib.stride_tricks.sliding_window_view(ids, size)
        begun = ids[len(ids) + 1 - size :]
        repeated = windows[(windows[:, :-1] == begun).all(axis=1), -1]
        logits[_inside(repeated, logits)] = -np.inf

    return step


def _suppress(tokens: np.ndarray) -> Step:
    def step(logits: np.ndarray, ids: np.ndarray) -> None:
        logits[_inside(tokens, logits)] = -np.inf

    return step

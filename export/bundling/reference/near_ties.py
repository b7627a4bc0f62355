"""Find the near-ties of a pruner: choices that change when noise is added to its inputs.

Engines and machines add in another order than torch does. Scores that nearly tie then fall out differently,
and in a loop of picks one choice changes later ones. The self-test excuses such choices, and only such.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from foveate.runtime.compiling.comparison import LIMITS

__all__ = ["near_ties"]

RUNS = 8
"""Runs per size of noise. A choice that noise decides evenly is missed by all of them once in 128 times."""


def near_ties(
    run: Callable[[list[Tensor]], dict[str, Tensor]], inputs: list[Tensor], found: dict[str, Tensor]
) -> dict[str, np.ndarray]:
    """Run a pruner on noisy inputs, and return the smallest noise that changes each of its choices.

    ``run`` maps inputs to outputs by name, ``found`` are its outputs without noise. The noise of each element
    is relative to the element. Its sizes are those of ``LIMITS``. Returns two arrays in float32, with
    infinity for what no noise changed:

    * ``kept_noise [N]``: for each patch, the noise at which it begins or ceases to be kept.
    * ``tokens_noise [count]``: for each kept row, the noise at which it is another patch, or another mixture
      of patches.
    """
    generator = torch.Generator().manual_seed(0)
    kept, rows = _kept_rows(found)
    patches: set[int] = set(kept[kept >= 0].tolist())
    unsteady: dict[int, float] = {}
    moved = np.full(len(kept), np.inf, np.float32)
    largest = float(np.abs(rows).max(initial=0.0))
    for limits in sorted((LIMITS["float32"], LIMITS["float16"]), key=lambda limits: limits.noise):
        for _ in range(RUNS):
            noisy = [_add_noise(value, limits.noise, generator) for value in inputs]
            other, changed = _kept_rows(run(noisy))
            for patch in patches ^ set(other[other >= 0].tolist()):
                unsteady.setdefault(patch, limits.noise)
            where = _counterparts(kept, other)
            near = np.abs(changed[where] - rows).max(-1, initial=0.0) <= limits.error * largest
            moved = np.where(np.isinf(moved) & ~(near & (where >= 0)), np.float32(limits.noise), moved)
    noise = np.full(max([*patches, *unsteady], default=-1) + 1, np.inf, np.float32)
    noise[list(unsteady)] = list(unsteady.values())
    return {"kept_noise": noise, "tokens_noise": moved}


def _kept_rows(outputs: dict[str, Tensor]) -> tuple[np.ndarray, np.ndarray]:
    """Return the kept patches ``[count]`` and their tokens ``[count,D]`` of the first image."""
    count = int(outputs["count"][0])
    return outputs["kept"][0, :count].numpy(), outputs["tokens"][0, :count].float().numpy()


def _add_noise(value: Tensor, noise: float, generator: torch.Generator) -> Tensor:
    if not value.is_floating_point():
        return value
    return value * (1 + noise * torch.randn(value.shape, generator=generator))


def _counterparts(kept: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Return for each kept row the index of the same patch in ``other``, or -1.

    A mixture without a patch (-1) has a counterpart only if everything kept is the same.
    """
    if np.array_equal(kept, other):
        return np.arange(len(kept))
    where = {patch: index for index, patch in enumerate(other.tolist()) if patch >= 0}
    return np.array([where.get(patch, -1) for patch in kept.tolist()], np.int64)

"""visionzip against a slow transcription in float64, at sizes and options that the golden vectors lack."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transcriptions import Row, check, numbers

from foveate.export import methods

GRIDS = [(12, 12), (7, 19), (1, 30)]


def budgets(size: int) -> list[int]:
    return [1, 2, 3, 7, 16, 29, size // 2, size - 1, size]


def best(score: np.ndarray, number: int) -> list[int]:
    return sorted(np.argsort(-score, kind="stable")[:number].tolist())


def dominant_and_contextual(features, cls, attention, keys, keep: int, contextual: int) -> list[Row]:
    size = len(features)
    if keep == size:
        return [(i, [i], features[i]) for i in range(size)]
    dominant = best(attention.sum(0), keep - contextual - 1)
    rest = [i for i in range(size) if i not in dominant]
    targets = rest[:: max(1, len(rest) // contextual)][:contextual] if contextual else []
    went: dict[int, list[int]] = {i: [] for i in targets}
    unit = keys / np.linalg.norm(keys, axis=1, keepdims=True)
    for i in rest:
        if targets and i not in went:
            went[max(targets, key=lambda t: (unit[i] @ unit[t], -t))].append(i)
    rows = [(-1, [], cls[0]), *((i, [i], features[i]) for i in dominant)]
    for t, members in went.items():
        rows.append((t, [t, *members], features[t] + (features[members].mean(0) if members else 0)))
    return rows


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("contextual", [None, 0, 1, 12, 4096])
def test_visionzip_keeps_dominant_tokens_and_mixes_the_rest(bench, grid, contextual):
    here, method = bench(grid), methods.load("visionzip", {"contextual": str(contextual)})
    for seed, keep in enumerate(budgets(here.size)):
        inputs = here.inputs(method, seed)
        number = 5 * keep // 32 if contextual is None else min(contextual, keep - 1)
        arrays = (numbers(inputs, name) for name in (method.source, *method.taps(here.spec)))
        expected = dominant_and_contextual(*arrays, keep, number)
        check(here.reduce(method, inputs, keep), expected, (seed, keep))


def test_visionzip_splits_published_budgets_as_published(bench):
    method = methods.load("visionzip")
    split = method.contextual_of(torch.tensor([32, 64, 128, 192]))
    assert split.tolist() == [5, 10, 20, 30]

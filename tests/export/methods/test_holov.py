"""holov against a slow transcription, at sizes and options that the golden vectors lack."""

from __future__ import annotations

import numpy as np
import pytest
from transcriptions import numbers

from foveate.export import methods


def best(score: np.ndarray, among: list[int], number: int) -> list[int]:
    return sorted(among, key=lambda i: (-score[i], i))[:number]


def shares(tokens, attention, keep: int, runs: int, alpha: float) -> list[int]:
    unit = tokens / np.linalg.norm(tokens, axis=1, keepdims=True)
    parts = np.array_split(np.arange(len(tokens)), runs)  # the first ones are longer
    scores = []
    for part in parts:
        n, salient = len(part), 1000 * attention[part]
        if n < 2:
            scores.append(attention[part].mean() if n else 0.0)
            continue
        near = unit[part] @ unit[part].T * (1 - np.eye(n))
        variance = ((near - near.sum(1, keepdims=True) / (n - 1)) ** 2).sum(1) / (n - 1)
        scores.append((salient + alpha * variance * salient.mean() / (variance.mean() + 1e-6)).mean())
    weights = np.array(scores) / (sum(scores) + 1e-6)
    quota = np.floor(weights * keep).astype(int)
    for run in np.argsort(-weights, kind="stable")[: keep - quota.sum()]:
        quota[run] += 1
    return sorted(i for part, q in zip(parts, quota, strict=True) for i in best(attention, list(part), q))


@pytest.mark.parametrize(
    ("grid", "options"),
    [((12, 12), {}), ((7, 19), {}), ((5, 5), {}), ((3, 3), {}), ((12, 12), {"runs": "7", "alpha": "5"})],
    ids=str,
)
def test_holov_gives_every_run_its_share(bench, grid, options):
    here, method = bench(grid), methods.load("holov", options)
    fewer = 0
    for seed, keep in enumerate((1, 3, here.size // 3, here.size // 2, here.size - 1)):
        inputs = here.inputs(method, seed)
        inputs["cls_attention.2"] = (
            inputs["cls_attention.2"] ** 2
        ).clone()  # some runs get far more than others
        attention = numbers(inputs, "cls_attention.2")
        expected = shares(numbers(inputs, "projected"), attention, keep, method.runs, method.alpha)
        rows, kept, count = here.reduce(method, inputs, keep)
        assert kept[0, : int(count)].tolist() == expected, (seed, keep)
        assert not rows[0, int(count) :].any()
        fewer += int(count) < keep
    assert fewer


def test_holov_can_refill_what_a_short_run_loses(bench):
    here = bench((5, 5))
    lose, refill = methods.load("holov"), methods.load("holov", {"surplus": "refill"})
    inputs = here.inputs(lose, 0)
    _, kept, count = here.reduce(lose, inputs, 20)
    assert int(count) < 20
    _, more, full = here.reduce(refill, inputs, 20)
    assert int(full) == 20 and set(kept[0, : int(count)].tolist()) < set(more[0].tolist())
    attention = numbers(inputs, "cls_attention.2")
    rest = [i for i in range(25) if i not in kept[0].tolist()]
    added = set(more[0].tolist()) - set(kept[0].tolist())
    assert added == set(best(attention, rest, 20 - int(count)))

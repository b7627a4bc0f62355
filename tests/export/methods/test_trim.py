"""trim against a slow transcription in float64, at sizes and options that the golden vectors lack."""

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


def asked_and_mean(features, image, text, keep: int, auto: bool, sign: str) -> list[Row]:
    size = len(features)
    text = np.array([t for t in text if np.any(t)])
    if keep == size and not auto:
        return [(i, [i], features[i]) for i in range(size)]
    number = keep - 1
    if len(text):
        score = np.exp({"positive": 1, "negative": -1}[sign] * (image @ text.T).mean(1))
        score /= score.sum()
        if auto:
            low, high = np.percentile(score, [25, 75])
            number = min(number, int((score > high + 1.5 * (high - low)).sum()))
        stays = best(score, number)
    else:  # the last token of each of `number` equal stretches
        stays = [] if auto else [-(-size * (n + 1) // number) - 1 for n in range(number)]
    rest = [i for i in range(size) if i not in stays]
    return [*((i, [i], features[i]) for i in stays), (-1, rest, features[rest].mean(0))]


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize(("auto", "sign"), [(False, "negative"), (False, "positive"), (True, "negative")])
@pytest.mark.parametrize("segments", [0, 1, 2])
def test_trim_keeps_what_the_text_is_least_like_and_one_mean(bench, grid, auto, sign, segments):
    here, method = bench(grid), methods.load("trim", {"auto": str(auto), "sign": sign})
    decided = 0
    for seed, keep in enumerate(budgets(here.size)):
        inputs = here.inputs(method, seed)
        inputs["clip_text"][:, segments:] = 0
        arrays = (numbers(inputs, name) for name in (method.source, *method.taps(here.spec)))
        expected = asked_and_mean(*arrays, keep, auto, sign)
        check(here.reduce(method, inputs, keep), expected, (seed, keep))
        decided += 2 < len(expected) < keep
    assert bool(decided) == (auto and segments > 0)


def test_trim_is_a_matter_of_length_too(bench):
    """Dot products, not cosines: a patch twice as long is twice as far on either side."""
    here, method = bench(), methods.load("trim")
    inputs = here.inputs(method, 0)
    inputs["clip_text"] = inputs["clip_text"][:, :1]
    score = method.score(inputs["clip_image"], inputs["clip_text"])[0][0]
    weakest = int(torch.where(score > 0, score, torch.inf).argmin())
    inputs["clip_image"][0, weakest] *= 1e3
    assert here.reduce(method, inputs, 2)[1][0].tolist() == [weakest, -1]

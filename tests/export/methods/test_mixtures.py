"""pool, trim and visionzip against slow transcriptions in float64, at sizes and options that the golden vectors lack."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from foveate.export import methods

GRIDS = [(12, 12), (7, 19), (1, 30)]
Row = tuple[int, list[int], np.ndarray]
"""Where a row stands (-1: nowhere), the tokens it is made of, and the row."""


def numbers(inputs: dict[str, torch.Tensor], name: str) -> np.ndarray:
    return inputs[name][0].double().numpy()


def budgets(size: int) -> list[int]:
    return [1, 2, 3, 7, 16, 29, size // 2, size - 1, size]


def check(out: tuple[torch.Tensor, ...], expected: list[Row], about: object) -> None:
    rows, kept, count, owner = (x[0] for x in out)
    assert int(count) == len(expected), about
    assert kept[: len(expected)].tolist() == [place for place, _, _ in expected], about
    went = {i: row for row, (_, members, _) in enumerate(expected) for i in members}
    assert owner.tolist() == [went.get(i, -1) for i in range(len(owner))], about
    theirs = np.array([row for _, _, row in expected])
    np.testing.assert_allclose(rows[: len(expected)].numpy(), theirs, rtol=0, atol=1e-5)


def best(score: np.ndarray, number: int) -> list[int]:
    return sorted(np.argsort(-score, kind="stable")[:number].tolist())


# ------------------------------------------------------------------ visionzip


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


# ------------------------------------------------------------------ trim


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


# ------------------------------------------------------------------ pool


def cells(tokens, grid: tuple[int, int], keep: int) -> list[Row]:
    rows, columns = grid
    fits = [(r, c) for r in range(1, rows + 1) for c in range(1, columns + 1) if r * c <= keep]
    down, across = min(fits, key=lambda f: Fraction(rows, f[0]) ** 2 + Fraction(columns, f[1]) ** 2)
    found = []
    for i in range(down):
        for j in range(across):
            ys = [y for y in range(rows) if y * down // rows == i]
            xs = [x for x in range(columns) if x * across // columns == j]
            members = [y * columns + x for y in ys for x in xs]
            middle = ys[(len(ys) - 1) // 2] * columns + xs[(len(xs) - 1) // 2]
            found.append((middle, members, tokens[members].mean(0)))
    return found


@pytest.mark.parametrize("grid", [*GRIDS, (24, 24), (9, 16)], ids=str)
def test_pool_averages_cells(bench, grid):
    here, method = bench(grid), methods.load("pool")
    inputs = here.inputs(method, 0)
    tokens = numbers(inputs, "projected")
    for keep in budgets(here.size):
        check(here.reduce(method, inputs, keep), cells(tokens, grid, keep), keep)


@pytest.mark.parametrize("keep", [1, 4, 9, 16, 36, 64, 144])
def test_pool_is_adaptive_average_pooling_where_sides_divide(bench, keep):
    here, method = bench((24, 24)), methods.load("pool")
    inputs = here.inputs(method, 0)
    rows, _, count, _ = here.reduce(method, inputs, keep)
    assert int(count) == keep
    image = inputs["projected"].transpose(1, 2).reshape(1, -1, 24, 24)
    pooled = F.adaptive_avg_pool2d(image, round(keep**0.5)).flatten(2).transpose(1, 2)
    torch.testing.assert_close(rows, pooled, rtol=0, atol=1e-5)


def test_pool_cells_at_the_usual_budgets(bench):
    here, method = bench((24, 24)), methods.load("pool")
    inputs = here.inputs(method, 0)
    counts = [int(here.reduce(method, inputs, keep)[2]) for keep in (32, 64, 128, 192)]
    assert counts == [30, 64, 121, 192]  # 5 x 6, 8 x 8, 11 x 11, 12 x 16

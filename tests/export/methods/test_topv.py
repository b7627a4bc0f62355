"""topv against its cost, its transport and its choice written out, pair by pair, in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from foveate.export import methods


def targets(here, known, layer: int) -> np.ndarray:
    """The layer's tokens behind attention and second norm, ``[T,D]``."""
    name = f"layers.{layer}"
    values = known.normed @ here.weight(f"{name}.self_attn.v_proj.weight")
    width, shared = here.spec.head_dim, here.spec.num_heads // here.spec.num_kv_heads
    mixed = [
        known.attention[h] @ values[:, (h // shared) * width : (h // shared + 1) * width]
        for h in range(here.spec.num_heads)
    ]
    behind = known.scored + np.concatenate(mixed, axis=1) @ here.weight(f"{name}.self_attn.o_proj.weight")
    return here.rms(behind, f"{name}.post_attention_layernorm")


def stretched(part: np.ndarray) -> np.ndarray:
    return (part - part.min()) / (part.max() - part.min()) if part.max() > part.min() else 0 * part


def importance(method, here, known, rows: list[int]) -> np.ndarray:
    """1 on average over the image."""
    source, target = known.scored[rows], targets(here, known, method.layer - 1)[rows]
    height, width = here.grid
    place = [
        ((height - 1) / 2, (width - 1) / 2) if known.patch[i] < 0 else divmod(known.patch[i], width)
        for i in rows
    ]
    size = len(rows)
    feature, relative, central = (np.zeros((size, size)) for _ in range(3))
    for i in range(size):
        for j in range(size):
            feature[i, j] = sum((source[i] - target[j]) ** 2)
            apart = (place[i][0] - place[j][0]) ** 2 + (place[i][1] - place[j][1]) ** 2
            relative[i, j] = 1 - np.exp(-apart / (2 * method.sigma**2))
            central[i, j] = np.hypot(place[i][0] - (height - 1) / 2, place[i][1] - (width - 1) / 2)
    cost = method.alpha * stretched(feature) + method.beta * stretched(relative)
    kernel = np.exp(-(cost + method.gamma * stretched(central)) / method.epsilon)
    u, v = np.ones(size), np.ones(size)
    for _ in range(method.iterations):
        u = 1 / size / (kernel @ v)
        v = 1 / size / (kernel.T @ u)
    plan = u[:, None] * kernel * v
    assert np.allclose(plan.sum(0), 1 / size)
    return plan.sum(1) * size


def chosen(score: np.ndarray, rows: list[int], keep: int, back: int) -> tuple[list[int], float]:
    order = sorted(range(len(rows)), key=lambda i: (-score[i], i))
    top = order[: keep - back]
    margin = (
        score[order[keep - back - 1]] - score[order[keep - back]] if 0 < keep - back < len(rows) else np.inf
    )
    rest = sorted(order[keep - back :])
    again = [rest[i * len(rest) // back] for i in range(back)]
    return sorted(rows[i] for i in top + again), margin


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"recovered": "0"},
        {"alpha": "0.3", "gamma": "1", "sigma": "3", "iterations": "1"},
        {"layer": "3", "epsilon": "0.2"},
    ],
    ids=str,
)
@pytest.mark.parametrize("layout", [(5, -64, 9), (3, -30, 4, -64, 6)], ids=str)
def test_equals_the_transcription(model, options, layout):
    method = methods.load("topv", options)
    here, compared = model(method), 0
    for seed, keep in enumerate((1, 4, 13, 20, 28)):
        feeds = here.prompt(seed, keep, layout)
        known = here.reference(feeds, method.layer - 1)
        expected, margin = [], np.inf
        for rows in known.images:
            score = importance(method, here, known, rows)
            found, gap = chosen(score, rows, keep, int(keep * method.recovered))
            expected, margin = expected + found, min(margin, gap)
        if margin < 4e-5:
            continue
        compared += 1
        assert [i for i in here.left(feeds) if known.image[i] >= 0] == expected, (seed, keep)
        assert len(expected) == keep * len(known.images)
    assert compared >= 3


def test_every_fourth_comes_back_at_half(model):
    """The independent implementation agrees: at half of the tokens, the dropped ones 0, 4, 8, and so on."""
    here = model(methods.load("topv"))
    feeds = here.prompt(0, keep=40)  # 32 by importance, 8 of the other 32
    only = model(methods.load("topv", {"recovered": "0"}))
    top = {i - 5 for i in only.left(feeds | {"keep": feeds["keep"].clamp(max=32)}) if 5 <= i < 69}
    rest = [i for i in range(64) if i not in top]
    assert {i - 5 for i in here.left(feeds) if 5 <= i < 69} == top | set(rest[::4])


def test_rows_first_would_say_nothing_of_the_cost(model):
    """The sums of the last scaling are the masses that were put in, so the columns come last."""
    method = methods.load("topv")
    here = model(method)
    known = here.reference(here.prompt(0), 1)
    score = importance(method, here, known, known.images[0])
    assert score.std() > 1e-3


def test_mixtures_of_a_stage_before_have_no_place(model):
    method = methods.load("topv", {"recovered": "0"})
    here = model(method)
    feeds = here.prompt(5)
    feeds["patch"][0, 20:30] = -1
    known = here.reference(feeds, 1)
    expected, margin = chosen(importance(method, here, known, known.images[0]), known.images[0], 16, 0)
    assert margin > 4e-5
    assert [i for i in here.left(feeds) if known.image[i] >= 0] == expected


def test_constant_images_are_judged_by_place_alone(model):
    here = model(methods.load("topv", {"recovered": "0"}))
    feeds = here.prompt(0, keep=8)
    for name in ("hidden", "scored"):
        feeds[name] = torch.ones_like(feeds[name])
    left = [i - 5 for i in here.left(feeds) if 5 <= i < 69]
    assert len(left) == 8
    mirrored = sorted((i // 8) * 8 + 7 - i % 8 for i in left)
    assert mirrored == left  # the grid's own symmetry

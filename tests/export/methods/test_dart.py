"""dart against a slow transcription of the published selection, token by token, in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from foveate.engines.errors import UserError
from foveate.export import methods


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def selection(method, model, feeds):
    """The rows of each image that stay, and how near the closest decision was."""
    known = model.reference(feeds, method.layer - 1)
    states = model.rms(known.hidden, "norm")
    size = [sum(np.abs(head[i]).sum() for head in known.k) for i in range(len(states))]
    margin = np.inf

    def largest(rows, number):
        nonlocal margin
        ordered = sorted(rows, key=lambda i: -size[i])
        if 0 < number < len(ordered):
            margin = min(margin, (size[ordered[number - 1]] - size[ordered[number]]) / size[ordered[number]])
        return sorted(ordered[:number])

    behind = [i for i in range(len(states)) if i > known.images[-1][-1]]
    words, left = largest(behind, method.text_pivots), []
    for rows in known.images:
        keep = int(known.keep[rows[0]])
        seeds = largest(rows, min(keep, method.image_pivots))
        retained, valid = set(seeds), [i for i in rows if i not in seeds]
        pivots, rest = seeds + words, keep - len(seeds)
        for turn, pivot in enumerate(pivots):
            share = rest // len(pivots) + (turn < rest % len(pivots))
            near = {i: cosine(states[pivot], states[i]) for i in valid}
            ordered = sorted(valid, key=lambda i: (near[i], i))
            if 0 < share < len(ordered):
                margin = min(margin, near[ordered[share]] - near[ordered[share - 1]])
            retained |= set(ordered[:share])
            valid = [i for i in valid if i not in retained]
        left.append(sorted(retained))
    return left, margin


@pytest.mark.parametrize(
    "options", [{}, {"image_pivots": "2", "text_pivots": "7"}, {"text_pivots": "0"}], ids=str
)
@pytest.mark.parametrize("layout", [(5, -64, 9), (3, -30, 4, -64, 6), (2, -20, 2)], ids=str)
def test_equals_the_transcription(model, options, layout):
    method = methods.load("dart", options)
    here, compared = model(method), 0
    for seed, keep in enumerate((1, 3, 4, 5, 12, 16, 19)):
        feeds = here.prompt(seed, keep, layout)
        expected, margin = selection(method, here, feeds)
        if margin < 1e-5:
            continue
        compared += 1
        visual = [i for i in here.left(feeds) if feeds["image"][0, i] >= 0]
        assert visual == [i for rows in expected for i in rows], (seed, keep)
        assert all(len(rows) == keep for rows in expected)
    assert compared >= 4


def test_the_published_numbers(model):
    """M tokens, as published, are 4 pivots and 8 times M // 8, by the published loop."""
    method = methods.load("dart")
    here = model(method)
    for seed, published in enumerate((8, 24, 44)):
        feeds = here.prompt(seed, 4 + 8 * (published // 8))
        known = here.reference(feeds, 1)
        states = here.rms(known.hidden, "norm")
        states /= np.linalg.norm(states, axis=1, keepdims=True)
        size = np.abs(known.k).sum((0, 2))
        (rows,) = known.images
        start, behind = rows[0], rows[-1] + 1
        image = [start + i for i in np.argsort(-size[rows])[:4].tolist()]
        text = [behind + i for i in np.argsort(-size[behind:])[:4].tolist()]
        indices, valid = {*image, *text}, set(rows) - set(image)
        for item in sorted(indices):
            candidates = sorted(valid)
            order = np.argsort(states[candidates] @ states[item])[: published // 8]
            found = {candidates[i] for i in order}
            indices, valid = indices | found, valid - found
        assert [i for i in here.left(feeds) if i in rows] == sorted(indices - set(text)), published


def test_a_copy_of_a_pivot_goes(model):
    """One pivot, and half of the image like it: the others are claimed first."""
    method = methods.load("dart", {"image_pivots": "1", "text_pivots": "0"})
    here = model(method)
    feeds = here.prompt(0, keep=33)
    alone = feeds | {"keep": feeds["keep"].clamp(max=1)}
    ((pivot,),), _ = selection(method, here, alone)
    copies = [i for i in range(5, 69) if i != pivot][:31]
    feeds["hidden"][0, copies] = 2 * feeds["hidden"][0, pivot]
    left = here.left(feeds)
    assert pivot in left and not set(copies) & set(left)


def test_the_layer_must_be_there(model):
    with pytest.raises(UserError, match="cannot prune before layer 8") as error:
        model(methods.load("dart", {"layer": "8"}))
    assert error.value.code == 2


def test_images_do_not_mix(model):
    here = model(methods.load("dart"))
    feeds = here.prompt(3, 12, (3, -40, 4, -64, 6))
    before = [i for i in here.left(feeds) if feeds["image"][0, i] == 0]
    other = here.prompt(4, 12, (3, -40, 4, -64, 6))
    second = (feeds["image"] == 1)[..., None]
    for name in ("hidden", "scored"):
        feeds[name] = torch.where(second, other[name], feeds[name])
    assert [i for i in here.left(feeds) if feeds["image"][0, i] == 0] == before

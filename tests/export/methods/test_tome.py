"""tome against a slow transcription of Token Merging in a whole CLIP tower, token by token, in float64."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch

from foveate.engines.errors import UserError
from foveate.export import methods
from foveate.export.checkpoints.module_weights import fill
from foveate.export.graphs.assemble import assemble
from foveate.export.models import llava

# ------------------------------------------------------------------ the transcription

Row = tuple[np.ndarray, list[int], int]
"""Features, the patches in it (none: the class token), and where it stands."""


def norm(x: np.ndarray, layer: torch.nn.LayerNorm) -> np.ndarray:
    centred = x - x.mean()
    scaled = centred / math.sqrt((centred**2).mean() + layer.eps)
    return scaled * layer.weight.double().numpy() + layer.bias.double().numpy()


def linear(x: np.ndarray, layer) -> np.ndarray:
    return x @ layer.weight.double().numpy() + layer.bias.double().numpy()


def attended(rows: list[Row], attention) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Proportional attention, what it adds to each row; and each row's key, mean over heads."""
    x = [row[0] for row in rows]
    query, key, value = (
        [np.split(linear(v, layer), attention.heads) for v in x]
        for layer in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    mixed = []
    for q in query:
        heads = []
        for h in range(attention.heads):
            scores = [
                q[h] @ k[h] / math.sqrt(len(q[h])) + math.log(max(len(r[1]), 1))
                for k, r in zip(key, rows, strict=True)
            ]
            weights = np.exp(np.array(scores) - max(scores))
            heads.append(sum(w * v[h] for w, v in zip(weights / weights.sum(), value, strict=True)))
        mixed.append(linear(np.concatenate(heads), attention.out_proj))
    return mixed, [np.mean(k, axis=0) for k in key]


def merged(rows: list[Row], keys: list[np.ndarray], number: int) -> list[Row]:
    """``number`` even rows go to the odd rows that they are most like."""
    unit = [k / np.linalg.norm(k) for k in keys]
    even, odd = range(0, len(rows), 2), range(1, len(rows), 2)
    match = {i: max(odd, key=lambda j: (unit[i] @ unit[j], -j)) for i in even if rows[i][1]}
    leaving = sorted(match, key=lambda i: (-(unit[i] @ unit[match[i]]), i))[:number]
    groups = {j: [j, *(i for i in leaving if match[i] == j)] for j in odd}
    after = [rows[i] for i in even if i not in leaving]
    for j, group in groups.items():
        patches = [p for i in group for p in rows[i][1]]
        total = sum(len(rows[i][1]) * rows[i][0] for i in group)
        after.append((total / len(patches), patches, rows[j][2]))
    return after


def transcription(vision, pixels: torch.Tensor, steps: list[int]) -> list[Row]:
    """The rows that are left, projected, in raster order of where they stand."""
    tower, projector = vision.tower, vision.projector
    with torch.no_grad():
        embedded = tower.embeddings(pixels)[0].double().numpy()
    rows: list[Row] = [
        (norm(x, tower.pre_layernorm), [i - 1] if i else [], i - 1) for i, x in enumerate(embedded)
    ]
    for layer, number in zip(tower.layers, steps, strict=True):
        mixed, keys = attended([(norm(x, layer.layer_norm1), p, s) for x, p, s in rows], layer.self_attn)
        rows = [(x + m, p, s) for (x, p, s), m in zip(rows, mixed, strict=True)]
        rows = merged(rows, keys, number) if number else rows
        rows = [(x + perceptron(norm(x, layer.layer_norm2), layer.mlp), p, s) for x, p, s in rows]
    rows = sorted(rows[1:], key=lambda row: row[2])
    return [
        (linear(activated(linear(x, projector.linear_1), projector), projector.linear_2), p, s)
        for x, p, s in rows
    ]


def perceptron(x: np.ndarray, mlp) -> np.ndarray:
    return linear(activated(linear(x, mlp.fc1), mlp), mlp.fc2)


def activated(x: np.ndarray, layer) -> np.ndarray:
    return layer.activation(torch.from_numpy(x)).numpy()


# ------------------------------------------------------------------ tests


def build(parts, keep: int | None):
    method = methods.load("tome", {} if keep is None else {"keep": str(keep)})
    return fill(parts.vision((), method.merging(parts.spec)), parts.weights, "vision_encoder.")


def image(seed: int, parts) -> torch.Tensor:
    side = parts.spec.vision.image_size
    return torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("keep", "steps"),
    [(None, [12, 13, 12, 13]), (60, [1, 1, 1, 1]), (61, [0, 1, 1, 1]), (20, [11] * 4), (16, [12] * 4)],
)
def test_equals_the_transcription(keep, steps):
    parts = llava.tiny(vision_layers=5)
    vision = build(parts, keep)
    for seed in range(2):
        pixels = image(seed, parts)
        expected = transcription(vision, pixels, steps)
        with torch.no_grad():
            found = vision(pixels)
        assert found["count"].tolist() == [len(expected)] == [64 - sum(steps)]
        assert found["kept"][0].tolist() == [place for _, _, place in expected]
        owner = {p: row for row, (_, patches, _) in enumerate(expected) for p in patches}
        assert found["owner"][0].tolist() == [owner[p] for p in range(64)]
        np.testing.assert_allclose(found["tokens"][0].numpy(), [x for x, _, _ in expected], rtol=0, atol=1e-4)


def test_equal_patches_weigh_as_much_as_before():
    """Equal patches give the same mixture in any case, and log(size) makes up for their number."""
    parts = llava.tiny(vision_layers=5)
    merging, whole = build(parts, 16), fill(parts.vision(()), parts.weights, "vision_encoder.")
    for vision in (merging, whole):
        vision.tower.embeddings.position_embedding[1:] = 0
    pixels = torch.full((1, 3, 56, 56), 0.7)
    with torch.no_grad():
        tokens, projected = merging(pixels)["tokens"], whole(pixels)["projected"]
    torch.testing.assert_close(tokens, projected[:, :16], rtol=0, atol=1e-5)


def test_images_of_a_batch_do_not_mix():
    parts = llava.tiny(vision_layers=5)
    vision, images = build(parts, 20), [image(seed, parts) for seed in range(3)]
    with torch.no_grad():
        together = vision(torch.cat(images))
        for b, pixels in enumerate(images):
            for name, alone in vision(pixels).items():
                torch.testing.assert_close(alone[0], together[name][b], rtol=0, atol=1e-5)


def test_keeping_all_changes_nothing():
    parts = llava.tiny()
    whole = fill(parts.vision(()), parts.weights, "vision_encoder.")
    pixels = image(0, parts)
    with torch.no_grad():
        found, projected = build(parts, 64)(pixels), whole(pixels)["projected"]
    assert torch.equal(found["tokens"], projected)
    assert torch.equal(found["kept"], torch.arange(64)[None]) and torch.equal(found["owner"], found["kept"])


@pytest.mark.parametrize("keep", [21, 65])
def test_budgets_that_the_layers_cannot_reach_are_refused(keep):
    with pytest.raises(UserError, match=rf"got {keep}, expected 22\.\.64, which 2 layers can reach"):
        methods.load("tome", {"keep": str(keep)}).merging(llava.tiny().spec)


def possible(steps: tuple[int, ...], size: int) -> bool:
    """Tell whether every layer has two patches for each that it merges."""
    return all(2 * step <= size - sum(steps[:i]) for i, step in enumerate(steps))


@pytest.mark.parametrize("layers", [2, 3, 8, 24])
@pytest.mark.parametrize("side", [7, 35, 56])
def test_the_least_is_what_layers_can_just_come_to(layers, side):
    spec = llava.tiny(image_size=side, vision_layers=layers).spec
    size, depth = spec.vision.num_tokens, spec.vision.depth
    found = []
    for keep in range(1, size + 1):
        even = tuple((size - keep) * (i + 1) // depth - (size - keep) * i // depth for i in range(depth))
        try:
            (steps,) = methods.load("tome", {"keep": str(keep)}).merging(spec).args
            assert steps == even and possible(even, size)
            found.append(keep)
        except UserError:
            assert not possible(even, size)
    default = methods.load("tome").fixed_keep(spec)
    assert found and default == max(size * 2 // 9, found[0])


def test_layers_take_even_shares():
    """LLaVA-1.5: 23 layers from 576 patches to 128; fewer than 24 they cannot come to."""
    spec = llava.tiny(image_size=168, vision_layers=24).spec
    assert (spec.vision.num_tokens, spec.vision.depth) == (576, 23)
    method = methods.load("tome")
    assert method.fixed_keep(spec) == 128
    (steps,) = method.merging(spec).args
    assert set(steps) == {19, 20} and sum(steps) == 448
    with pytest.raises(UserError, match=r"expected 24\.\.576"):
        methods.load("tome", {"keep": "23"}).merging(spec)


def test_families_whose_layers_are_closed_are_refused():
    parts = llava.tiny()
    closed = dataclasses.replace(parts.spec, taps=parts.spec.taps[1:])
    with pytest.raises(UserError, match="has no layers, which tome reads"):
        assemble(dataclasses.replace(parts, spec=closed), methods.load("tome"))

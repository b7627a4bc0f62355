"""hiprune, holov and vscan against slow transcriptions, at sizes and options that the golden vectors lack."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from foveate.export import methods


def numbers(inputs: dict[str, torch.Tensor], name: str) -> np.ndarray:
    return inputs[name][0].double().numpy()


def best(score: np.ndarray, among: list[int], number: int) -> list[int]:
    return sorted(among, key=lambda i: (-score[i], i))[:number]


# ------------------------------------------------------------------ hiprune


def anchors_and_rest(middle, deep, columns: int, keep: int, alpha: float) -> list[int]:
    size = len(middle)
    chosen = set()
    for i in best(middle, list(range(size)), round(keep * alpha / 5)):
        chosen |= {min(max(j, 0), size - 1) for j in (i, i - 1, i + 1, i - columns, i + columns)}
    rest = [i for i in range(size) if i not in chosen]
    return sorted([*chosen, *best(deep, rest, keep - len(chosen))])


@pytest.mark.parametrize("grid", [(12, 12), (7, 19), (1, 30)], ids=str)
@pytest.mark.parametrize("alpha", [0.0, 0.1, 0.5])
def test_hiprune_keeps_objects_their_neighbours_and_the_rest(bench, grid, alpha):
    here, method = bench(grid), methods.load("hiprune", {"alpha": str(alpha)})
    middle, deep = method.taps(here.spec)
    for seed, keep in enumerate((1, 5, 15, 25, 28, 30)):  # 25 x 0.5 / 5 is a half: rounded to even
        inputs = here.inputs(method, seed)
        expected = anchors_and_rest(numbers(inputs, middle), numbers(inputs, deep), grid[1], keep, alpha)
        assert here.reduce(method, inputs, keep)[1][0].tolist() == expected, (seed, keep)


def test_hiprune_neighbours_wrap_and_clamp_as_published(bench):
    here, method = bench(), methods.load("hiprune")
    inputs = here.inputs(method, 0)
    middle, deep = method.taps(here.spec)
    inputs[middle], inputs[deep] = torch.zeros(1, 144), torch.linspace(0, 1, 144)[None]
    inputs[middle][0, 24] = 1  # column 0 of row 2: its left neighbour is the end of row 1
    assert here.reduce(method, inputs, 30)[1][0, :5].tolist() == [12, 23, 24, 25, 36]
    inputs[middle][0, 24], inputs[middle][0, 5] = 0, 1  # row 0: above it is the first token
    assert here.reduce(method, inputs, 30)[1][0, :5].tolist() == [0, 4, 5, 6, 17]


def test_hiprune_budgets_below_anchors_and_neighbours(bench):
    here, method = bench(), methods.load("hiprune", {"alpha": "1"})
    inputs = here.inputs(method, 1)
    middle, deep = (numbers(inputs, name) for name in method.taps(here.spec))
    (anchor,) = best(middle, list(range(144)), 1)
    around = [min(max(anchor + step, 0), 143) for step in (-12, -1, 1, 12)]
    assert here.reduce(method, inputs, 3)[1][0].tolist() == sorted([anchor, *best(deep, around, 2)])


def test_middle_layers_are_in_proportion(bench):
    spec = bench().spec
    assert methods.load("hiprune").taps(spec) == ("received_attention.1", "received_attention.2")
    object.__setattr__(spec.vision, "depth", 23)
    assert methods.load("hiprune").taps(spec) == ("received_attention.8", "received_attention.22")
    assert methods.load("vscan").taps(spec) == ("cls_attention.5", "cls_attention.22")
    object.__setattr__(spec.vision, "depth", 1)
    for name in ("hiprune", "vscan"):
        (tap,) = methods.load(name).taps(spec)
        assert tap.endswith(".0")


# ------------------------------------------------------------------ holov


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


# ------------------------------------------------------------------ vscan


def scanned(tokens, shallow, deep, grid, keep: int, windows: int, local: float) -> dict[int, list[int]]:
    """The tokens that each kept one stands for."""
    rows, columns = grid
    share = int(keep * local)
    groups: dict[tuple[int, int], list[int]] = {}
    for i in range(len(tokens)):
        groups.setdefault((i // columns * windows // rows, i % columns * windows // columns), []).append(i)
    near = [i for group in groups.values() for i in best(shallow, group, share // windows**2)]
    others = [i for i in range(len(tokens)) if i not in near]
    kept = near + best(deep, others, keep - share)
    unit = tokens / np.linalg.norm(tokens, axis=1, keepdims=True)
    members = {i: [i] for i in sorted(kept)}
    for i in range(len(tokens)):
        if i not in members:
            members[max(sorted(kept), key=lambda j: unit[i] @ unit[j])].append(i)
    return members


@pytest.mark.parametrize(
    ("grid", "options"),
    [((12, 12), {}), ((9, 16), {"windows": "2"}), ((12, 12), {"local": "0.25"}), ((12, 12), {"local": "0"})],
    ids=str,
)
def test_vscan_scans_windows_and_the_whole_and_merges_the_rest(bench, grid, options):
    here, method = bench(grid), methods.load("vscan", options)
    shallow, deep = method.taps(here.spec)
    for seed, keep in enumerate((1, 16, 32, 50, 64, 100)):
        inputs = here.inputs(method, seed)
        tokens, *attention = (numbers(inputs, name) for name in ("projected", shallow, deep))
        expected = scanned(tokens, *attention, grid, keep, method.windows, method.local)
        rows, kept, count, owner = here.reduce(method, inputs, keep)
        assert kept[0, : int(count)].tolist() == sorted(expected), (seed, keep)
        assert all((owner[0, expected[i]] == row).all() for row, i in enumerate(sorted(expected)))
        theirs = [tokens[expected[i]].mean(0) for i in sorted(expected)]
        np.testing.assert_allclose(rows[0, : int(count)].numpy(), theirs, rtol=0, atol=1e-5)

"""vscan against a slow transcription, at sizes and options that the golden vectors lack."""

from __future__ import annotations

import numpy as np
import pytest
from transcriptions import numbers

from foveate.export import methods


def best(score: np.ndarray, among: list[int], number: int) -> list[int]:
    return sorted(among, key=lambda i: (-score[i], i))[:number]


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

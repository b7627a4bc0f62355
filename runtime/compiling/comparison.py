"""Compares the outputs of an engine with the reference answers of the build."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from foveate.engines import topk_logits

__all__ = [
    "LIMITS",
    "Finding",
    "Kept",
    "Limits",
    "NearTies",
    "compare",
    "compare_candidates",
    "compare_kept",
    "compare_logits",
]


@dataclass(frozen=True)
class Limits:
    """Allowed differences.

    ``cosine`` is the smallest allowed cosine. ``error`` is the largest allowed difference, relative to the
    largest value; logits closer than that are a near-tie. ``noise`` is the relative noise of a pruner's
    inputs: a choice that it changes is a near-tie (``export.bundling.reference.near_ties``). ``swaps`` is the
    share of kept tokens that may differ besides.
    """

    cosine: float
    error: float
    noise: float
    swaps: float


LIMITS = {
    "float32": Limits(cosine=0.99999, error=1e-3, noise=1e-4, swaps=0.01),
    "float32, int8": Limits(cosine=0.998, error=0.05, noise=1e-4, swaps=0.01),
    "float32, int8 unrecorded": Limits(cosine=0.995, error=0.1, noise=3e-3, swaps=0.01),
    "float16": Limits(cosine=0.999, error=0.03, noise=3e-3, swaps=0.05),
    "float16, int8": Limits(cosine=0.99, error=0.15, noise=3e-3, swaps=0.05),
    "float16, fp8": Limits(cosine=0.97, error=0.2, noise=3e-3, swaps=0.05),
}
"""Limits by the graph's dtype, and by the type to which it rounds activations.

Reference answers were rounded in the same way (``export.bundling.reference.run``), so what is left are values
that fall to the other side of a rounding step. Two kinds of rounding are not in the reference answers: what
ONNX Runtime rounds by itself (int4 products at accuracy level 4), and int8 prompts of a model whose decoding
uses int4.

Worst values seen in ONNX Runtime, with random tiny models of each family and `scripts/shapes` calibrated with
8 samples: error 3e-4 in float32; cosine 0.9996 and error 0.027 for int8 in float32; 0.995 and 0.11 in
float16; 0.98 and 0.17 for fp8. int4 costs a random LLaVA-1.5-7B 0.99976 and 0.033. No GPU has been measured
yet.
"""


@dataclass(frozen=True)
class Finding:
    """The comparison of one output with its reference.

    ``agreement`` is the share of equal tokens, ``excused`` the number of near-ties that were accepted; both
    are None for outputs that hold no choice. ``not_finite`` names the side that holds NaN or infinity,
    "engine" or "recording".
    """

    graph: str
    answer: str
    cosine: float
    error: float
    agreement: float | None
    excused: int | None
    ok: bool
    not_finite: str | None = None


def compare(graph: str, answer: str, got: np.ndarray, expected: np.ndarray, limits: Limits) -> Finding:
    """Compare an output with its reference, as one vector."""
    cosine, error = _distance(got, expected)
    # "not below" rather than "above": NaN fails every comparison
    ok = cosine >= limits.cosine and error <= limits.error
    return Finding(graph, answer, cosine, error, None, None, ok, _not_finite(got, expected))


def _not_finite(got: np.ndarray, expected: np.ndarray) -> str | None:
    """Return the value of ``Finding.not_finite`` for an output."""
    sides = {"recording": expected, "engine": got}
    return next((side for side, values in sides.items() if not np.isfinite(values).all()), None)


def _distance(got: np.ndarray, expected: np.ndarray) -> tuple[float, float]:
    """Return the cosine, and the largest difference relative to the largest expected value."""
    if got.shape != expected.shape:
        return 0.0, float("inf")
    a, b = got.astype(np.float64).ravel(), expected.astype(np.float64).ravel()
    scale = np.abs(b).max(initial=0.0)
    if not a.size or scale == 0:
        return (1.0, 0.0) if not np.any(a) else (0.0, float("inf"))
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b) or 1.0)), float(np.abs(a - b).max() / scale)


def compare_logits(graph: str, answer: str, got: np.ndarray, expected: np.ndarray, limits: Limits) -> Finding:
    """Compare logits by their worst row.

    Each row must choose the same token, or one that was nearly as likely.
    """
    if got.shape != expected.shape:
        return Finding(graph, answer, 0.0, float("inf"), 0.0, 0, ok=False)
    distances = [_distance(mine, theirs) for mine, theirs in zip(got, expected, strict=True)]
    cosine, error = min(c for c, _ in distances), max(e for _, e in distances)
    chosen, best = got.argmax(axis=1), expected.argmax(axis=1)
    index = np.arange(len(best))
    behind = (expected[index, best] - expected[index, chosen]) / np.abs(expected).max(axis=1)
    other = chosen != best
    tied = other & (behind <= limits.error)
    ok = cosine >= limits.cosine and error <= limits.error and bool((tied == other).all())
    agreement, nan = float(1 - other.mean()), _not_finite(got, expected)
    return Finding(graph, answer, cosine, error, agreement, int(tied.sum()), ok, nan)


@dataclass(frozen=True)
class Kept:
    """Patches that a pruner kept, ``patches [R]``, and their ``tokens [R,D]``.

    -1 is a mixture without a patch.
    """

    patches: np.ndarray
    tokens: np.ndarray


@dataclass(frozen=True)
class NearTies:
    """Near-ties of a recorded choice: numbers of patches, and of rows of the kept tokens."""

    patches: np.ndarray
    rows: np.ndarray


def compare_kept(graph: str, got: Kept, expected: Kept, ties: NearTies, limits: Limits) -> Finding:
    """Compare the choice of a pruner, and the tokens that both sides kept.

    Patches and rows that are near-ties may differ, and a share ``limits.swaps`` of the others.
    """
    mine, theirs = set(got.patches.tolist()), set(expected.patches.tolist())
    differing, tied, count = mine ^ theirs, set(ties.patches.tolist()), len(expected.patches)
    lengths = abs(len(got.patches) - count)
    other = max(len(mine - theirs), len(theirs - mine), lengths)
    unexcused = max(len(mine - theirs - tied), len(theirs - mine - tied), lengths - len(differing & tied))
    pairs = _pairs(got.patches, expected.patches)
    compared = [(a, b) for a, b in pairs if b not in ties.rows]
    rows, references = got.tokens[[a for a, _ in compared]], expected.tokens[[b for _, b in compared]]
    finding = compare(graph, "tokens, kept", rows, references, limits)
    ok = finding.ok and bool(pairs) and unexcused <= limits.swaps * count
    return replace(finding, agreement=1 - other / count, excused=other, ok=ok)


def _pairs(got: np.ndarray, expected: np.ndarray) -> list[tuple[int, int]]:
    """Return the rows of the patches that both sides kept.

    A mixture without a patch has a counterpart only if both sides kept the same.
    """
    if np.array_equal(got, expected):
        return [(row, row) for row in range(len(got))]
    where = {patch: row for row, patch in enumerate(got.tolist()) if patch >= 0}
    return [(where[patch], row) for row, patch in enumerate(expected.tolist()) if patch in where]


def compare_candidates(graph: str, logits: np.ndarray, values: np.ndarray, ids: np.ndarray) -> Finding:
    """Compare the engine's candidates with its own logits.

    They must be the largest; among equal ones any order.
    """
    expected = -np.sort(-logits, axis=1)[:, : values.shape[1]]
    theirs = np.take_along_axis(logits, ids.clip(0, logits.shape[1] - 1), axis=1)
    distinct = bool(np.diff(np.sort(ids, axis=1), axis=1).all())
    ok = distinct and np.array_equal(values, expected) and np.array_equal(values, theirs)
    distance, nan = _distance(values, expected), _not_finite(values, values)
    return Finding(graph, topk_logits.VALUES, *distance, None, None, ok, nan and "engine")

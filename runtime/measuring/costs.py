"""What a prompt costs the language model: FLOPs, bytes of cache and the schedule of tokens, by one formula.

In: a bundle's manifest and a budget, or plain numbers: a decoder's sizes as ``bundle.json`` has them, a schedule, the
tokens of text. Out: ``Cost``. A schedule is how many visual tokens pass how many layers: ((8, 576), (8, 217), (16, 19)).

With n rows (visual tokens and text), d wide, queries q and keys k wide (heads times ``head_dim``), an MLP of m, one layer takes

    n (2 d q + 2 d k + 3 d m) + 2 q n (n + 1) / 2    multiply-adds:

the four projections, the three matrices of a gated MLP, and scores and their sums over the pairs that a causal mask lets
through. The head counts for one row, the last. A multiply-add is two FLOPs. ``EXACT`` is this; publications count
otherwise (``Convention``), which moves absolute numbers by a factor of two and shares by a few points; the tests say
which one reproduces which. Left out: lookups, norms, activations, softmax, the vision encoder (``vision_flops``) and the
pruners, whose scoring inside the language model is a row of one layer's attention.
"""

from __future__ import annotations

from collections.abc import Mapping, Sized
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from foveate.runtime.bundle.loading import Manifest
from foveate.runtime.llm.budget import Keep, resolve_keep, stage_keep

__all__ = [
    "EXACT",
    "TEXT_TOKENS",
    "Convention",
    "Cost",
    "Schedule",
    "average_tokens",
    "cache_bytes",
    "decode_flops",
    "measured",
    "merged_vision_flops",
    "of",
    "prefill_flops",
    "schedule",
    "segments",
    "unpruned",
    "vision_flops",
]

Schedule = tuple[tuple[int, int], ...]
"""(layers, visual tokens in them), from the first layer to the last."""

TEXT_TOKENS = 40  # a chat format and a question of one sentence


@dataclass(frozen=True)
class Convention:
    """How FLOPs are counted. FastV's formula, 4nd^2 + 2n^2d + 2ndm, is ``Convention(1, 2, False, False)``."""

    flops_per_mac: int = 2
    mlp_matrices: int = 3  # 3 with a gate, as in LLaMA
    causal: bool = True  # pairs behind the mask do not count
    head: bool = True  # logits of the last row


EXACT = Convention()


@dataclass(frozen=True)
class Cost:
    """``flops`` of the prefill, ``decode_flops`` of the token after it; ``cache_bytes`` of the prompt's rows alone;
    ``average_tokens`` visual tokens, mean over layers."""

    flops: int
    decode_flops: int
    cache_bytes: int
    schedule: Schedule
    average_tokens: float


def of(manifest: Manifest, keep: Keep = None, text_tokens: int = TEXT_TOKENS, dtype: str = "float16") -> Cost:
    """The cost of one picture at ``keep`` among ``text_tokens``; the cache in ``dtype``. Raises UserError for a wrong ``keep``."""
    plan, decoder = schedule(manifest, keep), manifest.decoder
    return Cost(
        prefill_flops(decoder, plan, text_tokens),
        decode_flops(decoder, plan, text_tokens),
        cache_bytes(decoder, plan, text_tokens, dtype),
        plan,
        average_tokens(plan),
    )


def schedule(manifest: Manifest, keep: Keep = None) -> Schedule:
    """The most visual tokens that each segment of the decoder gets at ``keep``; a method whose count depends on the
    picture (a union, a quota, a threshold) may leave fewer. Raises UserError for a wrong ``keep``."""
    total = manifest.num_visual_tokens
    count = resolve_keep(keep, total, manifest.method)
    left, plan = total if manifest.method.get("fixed_keep") is None else count, []
    for stage, layers in segments(manifest):
        if stage in manifest.stages:
            points = manifest.limits.get(stage) or manifest.budgets.get(stage, ())
            left = min(left, stage_keep(points, count, total))
        plan.append((layers, left))
    return tuple(plan)


def measured(manifest: Manifest, stages: Mapping[str, Sized], total: int | None = None) -> Schedule:
    """The schedule as it was for a picture of which ``stages`` left this (``Answer.stages``); it had ``total`` tokens, by
    default as many as a picture can have."""
    left, plan = manifest.num_visual_tokens if total is None else total, []
    for stage, layers in segments(manifest):
        left = len(stages[stage]) if stage in stages else left
        plan.append((layers, left))
    return tuple(plan)


def segments(manifest: Manifest) -> list[tuple[str, int]]:
    """The decoder's segments: the pruner before each, which the first one may be without, and how many layers it has."""
    edges = (0, *manifest.cuts, manifest.decoder["num_layers"])
    pruners = ("pruner", *(f"pruner.{number}" for number in range(len(manifest.cuts))))
    return [(pruner, end - first) for pruner, (first, end) in zip(pruners, pairwise(edges), strict=True)]


def unpruned(manifest: Manifest) -> Schedule:
    """The schedule of method none."""
    return ((manifest.decoder["num_layers"], manifest.num_visual_tokens),)


def average_tokens(plan: Schedule) -> float:
    return sum(layers * tokens for layers, tokens in plan) / sum(layers for layers, _ in plan)


def prefill_flops(
    decoder: Mapping[str, int], plan: Schedule, text_tokens: int, convention: Convention = EXACT
) -> int:
    """FLOPs until the logits of the first new token."""
    rows = [(layers, tokens + text_tokens) for layers, tokens in plan]
    pairs = [(layers, n * (n + 1) // 2 if convention.causal else n * n) for layers, n in rows]
    return _flops(decoder, _weighted(rows), _weighted(pairs), convention)


def decode_flops(
    decoder: Mapping[str, int], plan: Schedule, text_tokens: int, convention: Convention = EXACT
) -> int:
    """FLOPs of one token more, which sees the prompt's rows and itself."""
    layers = sum(layers for layers, _ in plan)
    pairs = _weighted([(layers, tokens + text_tokens + 1) for layers, tokens in plan])
    return _flops(decoder, layers, pairs, convention)


def cache_bytes(decoder: Mapping[str, int], plan: Schedule, text_tokens: int, dtype: str = "float16") -> int:
    """Bytes of the prompt's keys and values in all layers."""
    rows = _weighted([(layers, tokens + text_tokens) for layers, tokens in plan])
    return rows * 2 * decoder["num_kv_heads"] * decoder["head_dim"] * np.dtype(dtype).itemsize


def vision_flops(
    *, hidden: int, intermediate: int, layers: int, patches: int, patch_size: int, projected: int
) -> int:
    """FLOPs of a CLIP tower (class token, every pair attends, MLP of two matrices) and LLaVA's projector of two layers."""
    n = patches + 1
    layer = n * (4 * hidden**2 + 2 * hidden * intermediate) + 2 * n * n * hidden
    ends = 3 * patch_size**2 * hidden + hidden * projected + projected**2
    return 2 * (layers * layer + patches * ends)


def merged_vision_flops(
    *,
    hidden: int,
    intermediate: int,
    layers: int,
    full_layers: int,
    window: int,
    patches: int,
    patch_size: int,
    mlp_matrices: int,
    merge: int,
    mergers: int,
    projected: int,
) -> int:
    """FLOPs of Qwen's towers: no class token, ``full_layers`` in which every pair attends and windows of ``window`` patches
    in the rest, patches of two frames, and ``mergers`` that join ``merge`` by ``merge`` patches in an MLP of two matrices
    (Qwen3-VL has one more for each of its deepstack layers)."""
    rows = layers * patches * (4 * hidden**2 + mlp_matrices * hidden * intermediate)
    pairs = full_layers * patches**2 + (layers - full_layers) * patches * window
    joined = merge**2 * hidden
    merging = mergers * (patches // merge**2) * (joined**2 + joined * projected)
    return 2 * (rows + 2 * pairs * hidden + patches * 6 * patch_size**2 * hidden + merging)


def _weighted(parts: list[tuple[int, int]]) -> int:
    return sum(layers * count for layers, count in parts)


def _flops(decoder: Mapping[str, int], rows: int, pairs: int, convention: Convention) -> int:
    """``rows`` through the matrices, ``pairs`` in attention, both summed over layers."""
    hidden, head_dim = decoder["hidden_size"], decoder["head_dim"]
    queries, keys = decoder["num_heads"] * head_dim, decoder["num_kv_heads"] * head_dim
    row = 2 * hidden * (queries + keys) + convention.mlp_matrices * hidden * decoder["intermediate_size"]
    head = hidden * decoder["vocab_size"] if convention.head else 0
    return convention.flops_per_mac * (rows * row + pairs * 2 * queries + head)

"""Costs of a prompt in the language model: FLOPs, bytes of kv cache, and the schedule of visual tokens.

Input: a bundle's manifest and a budget, or plain numbers (a decoder's sizes as in ``bundle.json``, a
schedule, a number of text tokens). Output: ``Cost``. A schedule says how many layers see how many visual
tokens: ((8, 576), (8, 217), (16, 19)).

Let n be the number of rows (visual tokens and text), d the hidden size, q and k the widths of queries and
keys (heads times ``head_dim``), and m the size of the MLP. Then one layer takes

    n (2 d q + 2 d k + 3 d m) + 2 q n (n + 1) / 2    multiply-adds:

the four projections, the three matrices of a gated MLP, and attention over the pairs that a causal mask lets
through (scores, and weighted sums of values). The head counts for one row, the last. A multiply-add is two
FLOPs.

This is the convention ``EXACT``. Publications count differently (``Convention``), which changes absolute
numbers by a factor of two and shares by a few points; the tests say which convention reproduces which
publication. Left out are lookups, norms, activations, softmax, the vision encoder (``vision_flops``) and the
pruners. An in-LLM pruner's scores cost as much as one row of one layer's attention.
"""

from __future__ import annotations

from collections.abc import Mapping, Sized
from dataclasses import dataclass
from itertools import pairwise

from foveate.runtime.bundle.manifest import DecoderSizes, Manifest
from foveate.runtime.llm.budget import Keep, resolve_keep, stage_keep
from foveate.runtime.llm.cache_rows import TEXT_TOKENS, layer_row_bytes

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
"""Pairs (number of layers, visual tokens in them), from the first layer to the last."""


@dataclass(frozen=True)
class Convention:
    """A way to count FLOPs. FastV's formula, 4nd^2 + 2n^2d + 2ndm, is ``Convention(1, 2, False, False)``."""

    flops_per_mac: int = 2
    mlp_matrices: int = 3  # 3 with a gate, as in LLaMA
    causal: bool = True  # leaves out pairs that the mask hides
    head: bool = True  # includes the logits of the last row


EXACT = Convention()


@dataclass(frozen=True)
class Cost:
    """Costs of one prompt.

    ``flops`` are those of the prefill, ``decode_flops`` those of the token after it. ``cache_bytes`` are
    those of the prompt's rows. ``average_tokens`` is the number of visual tokens, averaged over layers.
    """

    flops: int
    decode_flops: int
    cache_bytes: int
    schedule: Schedule
    average_tokens: float


def of(manifest: Manifest, keep: Keep = None, text_tokens: int = TEXT_TOKENS, dtype: str = "float16") -> Cost:
    """Return the cost of one image at ``keep`` and ``text_tokens`` text tokens, with a kv cache in ``dtype``.

    Raises UserError for a wrong ``keep``.
    """
    plan, decoder = schedule(manifest, keep), manifest.decoder
    return Cost(
        prefill_flops(decoder, plan, text_tokens),
        decode_flops(decoder, plan, text_tokens),
        cache_bytes(decoder, plan, text_tokens, dtype),
        plan,
        average_tokens(plan),
    )


def schedule(manifest: Manifest, keep: Keep = None) -> Schedule:
    """Return the largest number of visual tokens that each segment of the decoder gets at ``keep``.

    A method whose count depends on the image (a union, a quota, a threshold) may keep fewer. Raises UserError
    for a wrong ``keep``.
    """
    total = manifest.num_visual_tokens
    count = resolve_keep(keep, total, manifest.method)
    left, plan = total if manifest.method.fixed_keep is None else count, []
    for stage, layers in segments(manifest):
        if stage in manifest.stages:
            points = manifest.method.limits.get(stage) or manifest.method.budgets.get(stage, ())
            left = min(left, stage_keep(points, count, total))
        plan.append((layers, left))
    return tuple(plan)


def measured(manifest: Manifest, stages: Mapping[str, Sized], total: int | None = None) -> Schedule:
    """Return the schedule of one image as it was measured.

    ``stages`` holds what each stage kept (``Answer.stages``). ``total`` is the image's number of visual
    tokens; None stands for the largest possible.
    """
    left, plan = manifest.num_visual_tokens if total is None else total, []
    for stage, layers in segments(manifest):
        left = len(stages[stage]) if stage in stages else left
        plan.append((layers, left))
    return tuple(plan)


def segments(manifest: Manifest) -> list[tuple[str, int]]:
    """Return the decoder's segments: the name of the pruner before each, and the segment's number of layers.

    The first segment may have no pruner; its name is returned all the same.
    """
    edges = (0, *manifest.method.cuts, manifest.decoder.num_layers)
    pruners = ("pruner", *(f"pruner.{number}" for number in range(len(manifest.method.cuts))))
    return [(pruner, end - first) for pruner, (first, end) in zip(pruners, pairwise(edges), strict=True)]


def unpruned(manifest: Manifest) -> Schedule:
    """Return the schedule of method none."""
    return ((manifest.decoder.num_layers, manifest.num_visual_tokens),)


def average_tokens(plan: Schedule) -> float:
    """Return the number of visual tokens, averaged over layers."""
    return sum(layers * tokens for layers, tokens in plan) / sum(layers for layers, _ in plan)


def prefill_flops(
    decoder: DecoderSizes, plan: Schedule, text_tokens: int, convention: Convention = EXACT
) -> int:
    """Return the FLOPs until the logits of the first new token."""
    rows = [(layers, tokens + text_tokens) for layers, tokens in plan]
    pairs = [(layers, n * (n + 1) // 2 if convention.causal else n * n) for layers, n in rows]
    return _flops(decoder, _weighted(rows), _weighted(pairs), convention)


def decode_flops(
    decoder: DecoderSizes, plan: Schedule, text_tokens: int, convention: Convention = EXACT
) -> int:
    """Return the FLOPs of one more token, which attends to the prompt's rows and itself."""
    layers = sum(layers for layers, _ in plan)
    pairs = _weighted([(layers, tokens + text_tokens + 1) for layers, tokens in plan])
    return _flops(decoder, layers, pairs, convention)


def cache_bytes(decoder: DecoderSizes, plan: Schedule, text_tokens: int, dtype: str = "float16") -> int:
    """Return the bytes of the prompt's keys and values in all layers."""
    rows = _weighted([(layers, tokens + text_tokens) for layers, tokens in plan])
    return rows * layer_row_bytes(decoder, dtype)


def vision_flops(
    *, hidden: int, intermediate: int, layers: int, patches: int, patch_size: int, projected: int
) -> int:
    """Return the FLOPs of a CLIP tower and LLaVA's two-layer projector.

    The tower has a class token, attention between all pairs, and an MLP of two matrices.
    """
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
    """Return the FLOPs of Qwen's vision encoders.

    They have no class token. All pairs attend in ``full_layers``, and windows of ``window`` patches in the
    other layers. A patch has two frames. ``mergers`` join ``merge`` by ``merge`` patches in an MLP of two
    matrices; Qwen3-VL has one more for each of its deepstack layers.
    """
    rows = layers * patches * (4 * hidden**2 + mlp_matrices * hidden * intermediate)
    pairs = full_layers * patches**2 + (layers - full_layers) * patches * window
    joined = merge**2 * hidden
    merging = mergers * (patches // merge**2) * (joined**2 + joined * projected)
    return 2 * (rows + 2 * pairs * hidden + patches * 6 * patch_size**2 * hidden + merging)


def _weighted(parts: list[tuple[int, int]]) -> int:
    return sum(layers * count for layers, count in parts)


def _flops(decoder: DecoderSizes, rows: int, pairs: int, convention: Convention) -> int:
    """Return the FLOPs of ``rows`` in the matrices and ``pairs`` in attention, both summed over layers."""
    hidden, head_dim = decoder.hidden_size, decoder.head_dim
    queries, keys = decoder.num_heads * head_dim, decoder.num_kv_heads * head_dim
    row = 2 * hidden * (queries + keys) + convention.mlp_matrices * hidden * decoder.intermediate_size
    head = hidden * decoder.vocab_size if convention.head else 0
    return convention.flops_per_mac * (rows * row + pairs * 2 * queries + head)

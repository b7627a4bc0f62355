"""Taps: the tensors besides the visual tokens that a pre-LLM pruner reads, and their names and shapes.

A tap comes from the vision encoder (``cls_attention.22``: what it is, and the layer) or from the question
(``text_embeds``, ``clip_text``). A family lists in ``ModelSpec.taps`` what its vision encoder offers.
"""

from __future__ import annotations

from foveate.engines.errors import UserError
from foveate.engines.spec import Dim, Symbol
from foveate.export.spec import ModelSpec

__all__ = [
    "LAYERED",
    "MAX_SEGMENTS",
    "TEXT_TAPS",
    "full_layer",
    "question_taps",
    "saliency",
    "tap",
    "tap_shape",
]

LAYERED = ("cls_attention", "cls_attention_heads", "received_attention", "keys", "hidden")
"""Taps of a numbered layer. Taps without one: ``features cls_feature clip_image text_embeds clip_text``."""

TEXT_TAPS = ("text_embeds", "clip_text")
"""Taps that come from the question and not from the vision encoder. The runtime feeds them."""

MAX_SEGMENTS = 8
"""Largest number of texts that CLIP's text encoder encodes for one question."""

_MAX_WORDS = 512


def tap(spec: ModelSpec, offer: str, layer: int = -1) -> str:
    """Return the name that a tap has in graphs, e.g. ``cls_attention.22`` for layer -1 of 23.

    Raises UserError (code 2) when the vision encoder has no such layer.
    """
    if offer not in LAYERED:
        return offer
    depth = spec.vision.depth
    if not -depth <= layer < depth:
        raise UserError(
            f"no vision layer {layer} for {offer} | {spec.family} runs {depth} layers, expected "
            f"{-depth}..{depth - 1} | set another layer",
            code=2,
        )
    return f"{offer}.{layer % depth}"


def full_layer(spec: ModelSpec, share: float) -> int:
    """Return the layer with full attention that is nearest to ``share`` of the vision encoder's depth.

    Of two equally near layers it is the later one. In a layer with full attention all tokens see each other.
    """
    layer = round(share * spec.vision.depth)
    return min(spec.vision.full, key=lambda full: (abs(full - layer), -full))


def saliency(spec: ModelSpec) -> str:
    """Return the tap that tells which patches the vision encoder attends to, without its layer.

    It is the class token's attention, or the attention that each patch receives in families without a class
    token.
    """
    received = "cls_attention" not in spec.taps and "received_attention" in spec.taps
    return "received_attention" if received else "cls_attention"


def question_taps(relevance: str, spec: ModelSpec) -> tuple[str, ...]:
    """Return the taps that ``similarity.question_relevance`` reads.

    ``relevance`` is "clip" (CLIP's joint space of images and text), "embeddings" (the words as the language
    model embeds them), "auto" ("clip" in families that offer it, else "embeddings") or "none".
    """
    if relevance == "auto":
        relevance = "clip" if "clip_image" in spec.taps else "embeddings"
    return {"clip": ("clip_image", "clip_text"), "embeddings": ("text_embeds",), "none": ()}[relevance]


def tap_shape(spec: ModelSpec, name: str) -> tuple[Dim, ...]:
    """Return the shape of ``projected`` or of a tap."""
    vision, tiles, tokens = spec.vision, spec.vision.tiles, spec.vision.tokens
    head_dim = vision.hidden_size // vision.num_heads
    joint = vision.joint_size or 0
    shapes: dict[str, tuple[Dim, ...]] = {
        "projected": (tiles, tokens, spec.decoder.hidden_size),
        "features": (tiles, tokens, vision.feature_size),
        "cls_feature": (tiles, 1, vision.hidden_size),
        "cls_attention": (tiles, tokens),
        "cls_attention_heads": (tiles, vision.num_heads, tokens),
        "received_attention": (tiles, tokens),
        "keys": (tiles, tokens, head_dim),
        "hidden": (tiles, tokens, vision.hidden_size),
        "clip_image": (tiles, tokens, joint),
        "clip_text": (1, Symbol("segments", 1, 1, MAX_SEGMENTS), joint),
        "text_embeds": (1, Symbol("words", 1, 16, _MAX_WORDS), spec.decoder.hidden_size),
    }
    return shapes[name.split(".")[0]]

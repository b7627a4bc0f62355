"""Specs from Hugging Face configs: a CLIP vision tower, a LLaMA-like decoder.

Configs omit values that equal transformers' defaults, so the defaults are repeated here. ``checkpoint_keys``
has already refused keys that must have a fixed value; this module reads the others.
"""

from __future__ import annotations

from typing import Any

from foveate.engines.errors import UserError
from foveate.export.networks.clip_layers import ACTIVATIONS
from foveate.export.spec import ClipVisionSpec, DecoderSpec

__all__ = ["DECODERS", "Config", "clip_vision_spec", "decoder_spec"]

_CLIP_VISION = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "num_channels": 3,
    "image_size": 224,
    "patch_size": 32,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
}
_LLAMA = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "hidden_act": "silu",
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "eos_token_id": 2,
}
_MISTRAL = _LLAMA | {
    "intermediate_size": 14336,
    "num_key_value_heads": 8,
    "max_position_embeddings": 4096 * 32,
    "sliding_window": 4096,
}
_QWEN = _LLAMA | {
    "vocab_size": 152064,
    "hidden_size": 8192,
    "intermediate_size": 29568,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1e6,
    "eos_token_id": 151645,
}
DECODERS = {"llama": _LLAMA, "mistral": _MISTRAL, "qwen2_5_vl_text": _QWEN}
"""Defaults of transformers for a ``text_config``, by its ``model_type``."""
_QWEN_POSITIONS = 32768
"""The length that Qwen2.5-VL was trained on. Its configs say 128,000, which needs another rotary embedding.
"""

_LARGEST = {
    "num_hidden_layers": 1000,
    "depth": 1000,
    "patch_size": 1000,
    "temporal_patch_size": 1000,
    "image_size": 1 << 14,
    "window_size": 1 << 14,
}
_LARGEST_SIZE = 1 << 24
"""Limits that no model reaches. They keep a damaged config from taking any amount of work and memory."""


class Config:
    """A part of a ``config.json`` with its defaults. ``where`` names it in errors."""

    def __init__(self, values: dict[str, Any], defaults: dict[str, Any], where: str) -> None:
        # null overrides a default: for some keys, such as sliding_window, it has a meaning
        self._values = defaults | {k: v for k, v in values.items() if v is not None or k in defaults}
        self.where = where

    def get(self, key: str, default: Any = None) -> Any:
        """Return the value, or ``default`` if it is absent or null."""
        value = self._values.get(key)
        return default if value is None else value

    def size(self, key: str, default: int | None = None) -> int:
        """Return a whole number from 1 to the key's limit (``_LARGEST``, else ``_LARGEST_SIZE``).

        Raises UserError for another value.
        """
        value = self.get(key, default)
        most = _LARGEST.get(key, _LARGEST_SIZE)
        if type(value) is not int or value < 1:
            raise self.misfit(key, value, "a whole number above 0")
        if value > most:
            raise self.misfit(key, value, f"at most {most}")
        return value

    def number(self, key: str) -> float:
        """Return a number above 0. Raises UserError for another value."""
        value = self.get(key)
        if type(value) not in (int, float) or not value > 0:
            raise self.misfit(key, value, "a number above 0")
        return float(value)

    def demand(self, key: str, *supported: Any, default: Any = None) -> Any:
        """Return the value. Raises UserError unless it is one of ``supported``."""
        value = self.get(key, default)
        if value not in supported:
            raise self.misfit(key, value, " or ".join(map(str, supported)))
        return value

    def misfit(self, key: str, got: Any, expected: str) -> UserError:
        """Return the error for a value that is not supported."""
        return UserError(
            f"{self.where}: {key} is not supported | got {got}, expected {expected} | use another checkpoint"
        )


def clip_vision_spec(
    values: dict[str, Any], feature_layer: Any, joint: int | None, where: str
) -> ClipVisionSpec:
    """Return the spec of a CLIP tower.

    ``feature_layer`` counts hidden states as Hugging Face does: 0 is the embeddings, i the output of layer i
    - 1. Raises UserError for another kind of tower and for a missing layer.
    """
    config = Config(values, _CLIP_VISION, f"{where}: vision_config")
    config.demand("model_type", "clip_vision_model", default="clip_vision_model")
    config.demand("hidden_act", *ACTIVATIONS)
    layers = config.size("num_hidden_layers")
    if isinstance(feature_layer, list) and len(feature_layer) == 1:
        feature_layer = feature_layer[0]
    states = range(-layers, layers + 1)
    if type(feature_layer) is not int or feature_layer not in states or feature_layer == 0:
        expected = f"one layer, 1..{layers} or -1..{-layers}"
        raise Config({}, {}, where).misfit("vision_feature_layer", feature_layer, expected)
    return ClipVisionSpec(
        image_size=config.size("image_size"),
        patch_size=config.size("patch_size"),
        hidden_size=config.size("hidden_size"),
        intermediate_size=config.size("intermediate_size"),
        num_heads=config.size("num_attention_heads"),
        depth=feature_layer if feature_layer > 0 else layers + 1 + feature_layer,
        activation=config.get("hidden_act"),
        layer_norm_eps=config.number("layer_norm_eps"),
        joint_size=joint,
    )


def decoder_spec(values: dict[str, Any], tied: bool, where: str) -> DecoderSpec:
    """Return the spec of a decoder of LLaMA, Mistral or Qwen2.5-VL.

    Raises UserError for any other, and for a Mistral whose window is smaller than its longest prompt.
    """
    family = values.get("model_type") or "llama"
    where = f"{where}: text_config"
    if family not in DECODERS:
        raise Config({}, {}, where).misfit("model_type", family, " or ".join(DECODERS))
    config = Config(values, DECODERS[family], where)
    hidden, heads = config.size("hidden_size"), config.size("num_attention_heads")
    positions = config.size("max_position_embeddings")
    if family == "mistral" and config.get("sliding_window", positions) < positions:
        raise config.misfit("sliding_window", config.get("sliding_window"), f"null or at least {positions}")
    qwen = family == "qwen2_5_vl_text"
    if qwen:
        positions = min(positions, _QWEN_POSITIONS)
    head_dim = config.size("head_dim", hidden // heads)
    kv_heads = config.size("num_key_value_heads", heads)
    if heads % kv_heads:
        raise config.misfit("num_key_value_heads", kv_heads, f"a divisor of {heads}")
    return DecoderSpec(
        hidden_size=hidden,
        intermediate_size=config.size("intermediate_size"),
        num_layers=config.size("num_hidden_layers"),
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        vocab_size=config.size("vocab_size"),
        rms_norm_eps=config.number("rms_norm_eps"),
        rope_theta=_rope_theta(config, "default", *(("mrope",) if qwen else ())),
        max_positions=positions,
        tied=tied,
        attention_bias=qwen,
        rope_sections=_rope_sections(config, head_dim) if qwen else None,
    )


def _rope(config: Config) -> Config:
    """Return ``rope_scaling`` (older files) or ``rope_parameters`` (newer files), as transformers does."""
    key = "rope_scaling" if config.get("rope_scaling") else "rope_parameters"
    return Config(config.get(key, {}), {}, f"{config.where}.{key}")


def _rope_sections(config: Config, head_dim: int) -> tuple[int, ...]:
    """Return M-RoPE's numbers of frequencies for time, height and width."""
    sections = _rope(config).get("mrope_section", [16, 24, 24])
    if len(sections) != 3 or sum(sections) != head_dim // 2:
        raise config.misfit("mrope_section", sections, f"three numbers whose sum is {head_dim // 2}")
    return tuple(sections)


def _rope_theta(config: Config, *types: str) -> float:
    """Return the base of the rotary embedding, from its parameters or from the config.

    Raises UserError unless the embedding is one of ``types`` and covers whole heads.
    """
    rope = _rope(config)
    rope.demand("rope_type", *types, default=rope.get("type", "default"))
    rope.demand("partial_rotary_factor", 1.0, default=1.0)
    return (rope if rope.get("rope_theta") else config).number("rope_theta")

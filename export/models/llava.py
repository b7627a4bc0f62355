"""LLaVA-1.5 and its relatives (model_type ``llava``): CLIP tower, two-layer projector, LLaMA decoder.

``load`` makes ModelParts from a source in Hugging Face's format; ``tiny`` makes a random model of two layers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch

from foveate.engines.errors import UserError
from foveate.export.checkpoints import find as sources
from foveate.export.checkpoints.directory import Entry, Source, Unread
from foveate.export.checkpoints.layered_weights import LayeredWeights
from foveate.export.checkpoints.module_weights import entries, language_entries, under
from foveate.export.checkpoints.random_weights import Dummy, byte_tokenizer
from foveate.export.keys import config_keys, processor_keys
from foveate.export.keys.key_table import FamilyKeys
from foveate.export.model_parts import ModelParts
from foveate.export.networks.clip_layers import ACTIVATIONS
from foveate.export.networks.clip_vision import TAPS, Projector, Vision
from foveate.export.networks.decoder import Decoder
from foveate.export.other_checkpoints.clip_joint_space import JointSpace, joint_size
from foveate.export.settings import generation, image_processor
from foveate.export.settings import prompt as processor
from foveate.export.settings.hf_config import Config, clip_vision_spec, decoder_spec
from foveate.export.settings.vocabulary import fed_by, refuse_tokens_beside, refuse_tokens_beyond
from foveate.export.spec import ClipVisionSpec, DecoderSpec, ModelSpec, StartMerging

__all__ = [
    "CHECKPOINTS",
    "CLIP_TOWER",
    "CONFIGS",
    "KEYS",
    "VICUNA",
    "VICUNA_13B",
    "clip_of",
    "load",
    "parts",
    "tiny",
    "tiny_configs",
]

CHECKPOINTS = {
    "llava-1.5-7b": "llava-hf/llava-1.5-7b-hf",
    "llava-1.5-13b": "llava-hf/llava-1.5-13b-hf",
}

KEYS = FamilyKeys(
    top=config_keys.LLAVA,
    text="llama",
    vision=config_keys.CLIP_VISION,
    image=processor_keys.CLIP,
    tokenizer=processor_keys.TOKENIZER,
)

_CLIP_ID = "openai/clip-vit-large-patch14-336"
CLIP_TOWER = {
    "model_type": "clip_vision_model",
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 336,
    "patch_size": 14,
}
_CLIP_TEXT = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "eos_token_id": 2,
}
_CLIP = {
    "model_type": "clip",
    "projection_dim": 768,
    "vision_config": CLIP_TOWER,
    "text_config": _CLIP_TEXT,
}
"""The config of ``_CLIP_ID``. With it the checkpoint is not needed until a method asks for the joint space.
"""

VICUNA = {
    "model_type": "llama",
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "vocab_size": 32064,
}
VICUNA_13B = VICUNA | {
    "hidden_size": 5120,
    "intermediate_size": 13824,
    "num_attention_heads": 40,
    "num_hidden_layers": 40,
}
_SHARED = {
    "model_type": "llava",
    "image_token_index": 32000,
    "pad_token_id": 32001,
    "vision_config": CLIP_TOWER,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "llava-1.5-7b": _SHARED | {"text_config": VICUNA},
    "llava-1.5-13b": _SHARED | {"text_config": VICUNA_13B},
}
"""Configs of the true sizes, for dummies. A checkpoint uses its own config."""

# Prefixes of our tensors in a checkpoint. They changed with transformers' versions; the published LLaVA-1.5
# has the first of each.
_DECODER = ("language_model.model.", "model.language_model.")
_HEAD = ("language_model.lm_head.", "lm_head.")
_TOWER = (
    "vision_tower.vision_model.",
    "vision_tower.",
    "model.vision_tower.vision_model.",
    "model.vision_tower.",
)
_PROJECTOR = ("multi_modal_projector.", "model.multi_modal_projector.")


def load(source: Source, *, clip: str | None = None, max_pixels: int | None = None) -> ModelParts:
    """Return the parts of a LLaVA checkpoint.

    ``clip`` is the CLIP checkpoint of its tower (directory or hub id). The default is ``clip`` in the
    checkpoint's directory, or OpenAI's if the tower is theirs. It is opened when a method asks for a tap of
    the joint space. Raises UserError for files that are missing, do not fit or are not supported.
    """
    image_processor.refuse_max_pixels(source, max_pixels)
    return parts(source, *clip_of(source, clip))


def tiny(
    *,
    kv_heads: int = 2,
    tied: bool = False,
    feature_layer: int = -2,
    layers: int = 2,
    vision_layers: int = 3,
    hidden: int = 128,
    image_size: int = 56,
    max_positions: int = 512,
) -> ModelParts:
    """Make a random model of LLaVA's form for tests, with a joint space and byte-level tokenizers.

    It has 64 patches and a decoder of 4 heads. ``kv_heads`` below 4 gives grouped-query attention.
    ``vision_layers`` counts all layers of the tower, including those behind the feature layer.
    """
    config, clip = tiny_configs(
        kv_heads, tied, feature_layer, layers, vision_layers, hidden, image_size, max_positions
    )
    return parts(Dummy("tiny-llava", config), clip, Dummy("tiny-clip", clip))


def tiny_configs(
    kv_heads: int = 2,
    tied: bool = False,
    feature_layer: int = -2,
    layers: int = 2,
    vision_layers: int = 3,
    hidden: int = 128,
    image_size: int = 56,
    max_positions: int = 512,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the configs of ``tiny`` and of its CLIP."""
    tower = {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": vision_layers,
        "num_attention_heads": 4,
        "image_size": image_size,
        "patch_size": 7,
    }
    text = {
        "hidden_size": hidden,
        "intermediate_size": 2 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": kv_heads,
        "vocab_size": 320,
        "max_position_embeddings": max_positions,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": tied,
    }
    words = {
        "vocab_size": 320,
        "hidden_size": 48,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 77,
        "eos_token_id": 319,
    }
    config = {
        "model_type": "llava",
        "vision_feature_layer": feature_layer,
        "image_token_index": 3,
        "pad_token_id": 4,
        "vision_config": tower,
        "text_config": text,
    }
    return config, {
        "model_type": "clip",
        "projection_dim": 48,
        "vision_config": tower,
        "text_config": words,
    }


def parts(
    source: Source,
    clip: dict[str, Any] | None,
    clip_source: Source | str | None,
    image: dict[str, Any] | None = None,
    beside: Mapping[str, Entry] | None = None,
) -> ModelParts:
    """Return the parts of a LLaVA-like checkpoint.

    ``clip`` is the config of the tower's CLIP checkpoint; ``clip_source`` is that checkpoint or its hub id. A
    relative of LLaVA passes its own ``image`` settings, and the Entries ``beside`` of tensors that LLaVA does
    not have.
    """
    vision, decoder, top = _specs(source, clip)
    bias = top.demand("multimodal_projector_bias", True, False, default=True)
    activation = top.demand("projector_hidden_act", *ACTIVATIONS, default="gelu")

    def build(taps: tuple[str, ...], merging: StartMerging | None = None) -> Vision:
        if "clip_image" in taps and joint is None:
            raise UserError(
                f"{source.label} has no joint space of images and texts "
                "| expected the CLIP checkpoint of its vision tower in its directory under clip "
                "| name it with --clip"
            )
        with torch.device("meta"):
            return Vision(vision, projector(), taps, merging)

    def projector() -> Projector:
        with torch.device("meta"):
            return Projector(vision.hidden_size, decoder.hidden_size, activation, bias)

    joint = JointSpace(clip, vision, clip_source) if clip and clip_source else None
    with torch.device("meta"):
        language = Decoder(decoder)
    tokenizer = _tokenizer(source, decoder, top)
    prompt = _prompt(source, tokenizer, top)
    refuse_tokens_beyond(decoder.vocab_size, tokenizer, source.label, fed_by(prompt))
    refuse_tokens_beside(source, tokenizer, fed_by(prompt))
    weights = source.weights(_entries(build(()), language) | dict(beside or {}), _unread(vision))
    return ModelParts(
        spec=ModelSpec("llava", vision, decoder, ("layers", *(TAPS if joint else TAPS[:-1]))),
        vision=build,
        projector=projector,
        decoder=language,
        weights=weights if joint is None else LayeredWeights(joint, weights),
        image=image_processor.image_settings(source, vision.image_size) if image is None else image,
        prompt=prompt,
        files={"tokenizer.json": tokenizer},
        text_encoder=joint.text_encoder if joint else None,
        open_clip=joint.clip_files if joint else None,
        source={"model": source.label, "revision": source.revision, "load_format": source.load_format},
    )


def _specs(source: Source, clip: dict[str, Any] | None) -> tuple[ClipVisionSpec, DecoderSpec, Config]:
    top = Config(source.config, {}, source.label)
    feature_layer = top.get("vision_feature_layer", -2)
    tower = top.get("vision_config", CLIP_TOWER)
    vision = clip_vision_spec(tower, feature_layer, joint_size(clip) if clip else None, source.label)
    text = top.get("text_config", {})
    return vision, decoder_spec(text, _tied(top, text), source.label), top


def _tied(top: Config, text: Mapping[str, Any]) -> bool:
    """Return True if the head may be the embedding table.

    transformers 5 reads the outer config. LLaVA's outer config takes over the inner one's value; LLaVA-NeXT's
    does not.
    """
    handed_on = top.get("model_type") != "llava_next" and text.get("tie_word_embeddings")
    return bool(top.get("tie_word_embeddings") or handed_on)


def _entries(vision: Vision, decoder: Decoder) -> dict[str, Entry]:
    position = "embeddings.position_embedding"
    tower = [
        (f"tower.{position}", under(_TOWER, f"{position}.weight")),
        ("tower.pre_layernorm.", under(_TOWER, "pre_layrnorm.")),  # transformers' spelling
        ("tower.layers.", under(_TOWER, "encoder.layers.")),
        ("tower.", _TOWER),
        ("projector.", _PROJECTOR),
    ]
    return entries(vision, "vision_encoder.", tower) | language_entries(decoder, _DECODER, _HEAD)


def _unread(vision: ClipVisionSpec) -> Unread:
    """Return the rules for tensors that are not read: the tower's layers behind the feature layer."""
    start = f"(?:{'|'.join(map(re.escape, _TOWER))})"
    read = "|".join(map(str, range(vision.depth)))
    reason = "behind the layer whose features are read"
    return {
        rf"{start}encoder\.layers\.(?!(?:{read})\.)\d+\..*": reason,
        rf"{start}post_layernorm\..*": reason,
    }


def _tokenizer(source: Source, decoder: DecoderSpec, top: Config) -> bytes:
    if source.load_format == "dummy" and source.file("tokenizer.json") is None:
        special = {"<unk>": 0, "<s>": 1, "</s>": 2, "<image>": _image_token_id(top)}
        if (pad := _pad_id(top)) is not None:
            special["<pad>"] = pad
        return byte_tokenizer(decoder.vocab_size, special, begin="<s>")
    return processor.tokenizer_json(source)


def _prompt(source: Source, tokenizer: bytes, top: Config) -> dict[str, Any]:
    stop = generation.stop_ids(source, default=2)
    return processor.prompt_settings(source, tokenizer, _image_token_id(top), stop, _pad_id(top))


def _image_token_id(top: Config) -> int:
    return top.get("image_token_index", top.get("image_token_id", 32000))


def _pad_id(top: Config) -> int | None:
    return top.get("pad_token_id", top.get("text_config", {}).get("pad_token_id"))


def clip_of(source: Source, clip: str | None) -> tuple[dict[str, Any] | None, Source | str | None]:
    """Return the config of the tower's CLIP checkpoint, and the checkpoint or its hub id, or two None."""
    tower = {k: (source.config.get("vision_config") or CLIP_TOWER).get(k) for k in CLIP_TOWER}
    beside = source.file("clip/config.json")
    checkpoint = str(beside.parent) if clip is None and beside is not None else clip
    if checkpoint is not None:
        found = sources.find(checkpoint)
        return found.config, found
    if tower != CLIP_TOWER:
        return None, None
    return _CLIP, Dummy(_CLIP_ID, _CLIP) if source.load_format == "dummy" else _CLIP_ID

"""Qwen2.5-VL (model_type ``qwen2_5_vl``): images of any size, an encoder with windows, a decoder with M-RoPE.

``export/networks/qwen_vision.py`` is the encoder. ``runtime/images/token_layout.py`` (kind ``windows``)
decides how many visual tokens an image has and where they are. Rows keep their M-RoPE position ids whatever
is pruned.

There is no class token, no joint space of images and texts, and no merging in the encoder's layers. Methods
that need one of these are refused. Other methods read the attention that a token receives in the last layer
without windows, and the language model's embeddings of the question.
"""

from __future__ import annotations

from typing import Any

import torch

from foveate.engines.errors import UserError
from foveate.export.checkpoints.directory import Entry, Source
from foveate.export.checkpoints.module_weights import entries, language_entries, under
from foveate.export.checkpoints.random_weights import Dummy, byte_tokenizer
from foveate.export.keys import config_keys, processor_keys
from foveate.export.keys.key_table import FamilyKeys
from foveate.export.model_parts import ModelParts
from foveate.export.networks.decoder import Decoder
from foveate.export.networks.qwen_vision import TAPS, Merger, Vision
from foveate.export.networks.qwen_vision_spec import WindowSpec
from foveate.export.settings import generation, image_processor
from foveate.export.settings import prompt as processor
from foveate.export.settings.hf_config import Config, decoder_spec
from foveate.export.settings.vocabulary import fed_by, refuse_tokens_beside, refuse_tokens_beyond
from foveate.export.spec import ModelSpec, StartMerging

__all__ = ["CHECKPOINTS", "CONFIGS", "KEYS", "load", "tiny"]

CHECKPOINTS = {
    "qwen2.5-vl-3b": "Qwen/Qwen2.5-VL-3B-Instruct",
    "qwen2.5-vl-7b": "Qwen/Qwen2.5-VL-7B-Instruct",
}

KEYS = FamilyKeys(
    top=config_keys.QWEN,
    text="qwen2_5_vl_text",
    vision=config_keys.QWEN_VISION,
    image=processor_keys.WINDOWS,
    tokenizer=processor_keys.QWEN_TOKENIZER,
    flat=True,
)

_VISION = {
    "hidden_size": 1280,
    "intermediate_size": 3420,
    "depth": 32,
    "num_heads": 16,
    "patch_size": 14,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "window_size": 112,
    "fullatt_block_indexes": [7, 15, 23, 31],
    "tokens_per_second": 2,
    "hidden_act": "silu",
}
_VISION_DEFAULTS = _VISION | {"hidden_size": 3584, "out_hidden_size": 3584, "tokens_per_second": 4}
"""Defaults of transformers for keys that a checkpoint omits."""
_SHARED = {
    "model_type": "qwen2_5_vl",
    "image_token_id": 151655,
    "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
    "max_position_embeddings": 128000,
    "rms_norm_eps": 1e-6,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "qwen2.5-vl-3b": _SHARED
    | {
        "hidden_size": 2048,
        "intermediate_size": 11008,
        "num_hidden_layers": 36,
        "num_attention_heads": 16,
        "num_key_value_heads": 2,
        "vocab_size": 151936,
        "tie_word_embeddings": True,
        "vision_config": _VISION | {"out_hidden_size": 2048},
    },
    "qwen2.5-vl-7b": _SHARED
    | {
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "vocab_size": 152064,
        "tie_word_embeddings": False,
        "vision_config": _VISION | {"out_hidden_size": 3584},
    },
}
"""Configs of the true sizes, for dummies. A checkpoint uses its own config."""

_SPECIAL = {
    "<|endoftext|>": 151643,
    "<|im_start|>": 151644,
    "<|im_end|>": 151645,
    "<|vision_start|>": 151652,
    "<|vision_end|>": 151653,
    "<|image_pad|>": 151655,
}
_VIDEO_ID = 151656  # <|video_pad|>
_CHAT = {
    "before": "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n",
    "roles": {
        "system": "<|im_start|>system\n",
        "user": "<|im_start|>user\n",
        "assistant": "<|im_start|>assistant\n",
    },
    "image": "<|vision_start|><|image_pad|><|vision_end|>",
    "order": "given",
    "after_text": "",
    "end": "<|im_end|>\n",
    "generation": "<|im_start|>assistant\n",
}

_DECODER = ("model.", "model.language_model.", "language_model.model.")
_HEAD = ("lm_head.", "language_model.lm_head.")
_TOWER = ("visual.", "model.visual.")


def load(source: Source, *, clip: str | None = None, max_pixels: int | None = None) -> ModelParts:
    """Return the parts of a Qwen2.5-VL checkpoint.

    ``max_pixels`` is the largest number of pixels of an image (see ``image_processor.window_settings``).
    Raises UserError for files that are missing, do not fit or are not supported.
    """
    if clip is not None:
        raise UserError(
            f"{source.label} takes no CLIP | got --clip {clip}, but its vision encoder is not CLIP's "
            "| leave it out",
            code=2,
        )
    return _parts(source, max_pixels=max_pixels)


def tiny(*, layers: int = 2, kv_heads: int = 2, tied: bool = False, hidden: int = 64) -> ModelParts:
    """Make a random model of Qwen2.5-VL's form for tests.

    Windows have 2 x 2 visual tokens, layer 1 (of 0 and 1) has none, and an image has at most 64 visual
    tokens.
    """
    config = {
        "model_type": "qwen2_5_vl",
        "image_token_id": 5,
        "hidden_size": hidden,
        "intermediate_size": 2 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": kv_heads,
        "vocab_size": 320,
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": tied,
        "rope_scaling": {"type": "mrope", "mrope_section": [2, hidden // 16 - 1, hidden // 16 - 1]},
        "vision_config": _VISION
        | {
            "hidden_size": 32,
            "intermediate_size": 48,
            "depth": 2,
            "num_heads": 2,
            "patch_size": 4,
            "window_size": 16,
            "fullatt_block_indexes": [1],
            "out_hidden_size": hidden,
        },
    }
    special = dict(zip(_SPECIAL, range(6), strict=True))
    video = {"fps": 2, "min_frames": 4, "max_frames": 8, "min_pixels": 256, "max_pixels": 1024}
    video |= {"total_pixels": 3600, "tokens_per_second": 2}
    pixels = {"min_pixels": 256, "max_pixels": 64 * 64, "video": video}
    return _parts(Dummy("tiny-qwen2.5-vl", config), special, pixels)


def _parts(
    source: Source,
    special: dict[str, int] = _SPECIAL,
    pixels: dict[str, Any] | None = None,
    max_pixels: int | None = None,
) -> ModelParts:
    """Return the parts. ``special`` are the special tokens and ``pixels`` the pixel limits of a dummy."""
    top = Config(source.config, {}, source.label)
    text = top.get("text_config") or {k: v for k, v in source.config.items() if k != "model_type"}
    tied = bool(top.get("tie_word_embeddings") or text.get("tie_word_embeddings"))
    decoder = decoder_spec({**text, "model_type": "qwen2_5_vl_text"}, tied, source.label)
    vision, image = _vision_spec(source, decoder.hidden_size, pixels or {}, max_pixels)

    def build(taps: tuple[str, ...], merging: StartMerging | None = None) -> Vision:
        with torch.device("meta"):
            return Vision(vision, projector(), taps)

    def projector() -> Merger:
        with torch.device("meta"):
            return Merger(vision.feature_size, decoder.hidden_size)

    with torch.device("meta"):
        language = Decoder(decoder)
    image_id = top.get("image_token_id", _SPECIAL["<|image_pad|>"])
    if source.load_format == "dummy" and source.file("tokenizer.json") is None:
        tokenizer = byte_tokenizer(decoder.vocab_size, special)
    else:
        tokenizer = processor.tokenizer_json(source)
    stop = generation.stop_ids(source, default=special["<|im_end|>"])
    prompt = processor.prompt_settings(
        source, tokenizer, image_id, stop, special["<|endoftext|>"], default=_CHAT
    )
    prompt["video_token_id"] = top.get("video_token_id", _VIDEO_ID)
    refuse_tokens_beyond(decoder.vocab_size, tokenizer, source.label, fed_by(prompt))
    refuse_tokens_beside(source, tokenizer, fed_by(prompt))
    return ModelParts(
        spec=ModelSpec("qwen2_5_vl", vision, decoder, TAPS),
        vision=build,
        projector=projector,
        decoder=language,
        weights=source.weights(_entries(build(()), language)),
        image=image,
        prompt=prompt,
        files={"tokenizer.json": tokenizer},
        source={"model": source.label, "revision": source.revision, "load_format": source.load_format},
    )


def _vision_spec(
    source: Source, width: int, pixels: dict[str, Any], max_pixels: int | None
) -> tuple[WindowSpec, dict[str, Any]]:
    """Return the encoder's spec and the image settings."""
    where = f"{source.label}: vision_config"
    config = Config(source.config.get("vision_config") or {}, _VISION_DEFAULTS, where)
    config.demand("spatial_merge_size", 2)
    config.demand("out_hidden_size", width)
    patch, frames = config.size("patch_size"), config.size("temporal_patch_size")
    window = config.size("window_size") // patch // 2
    seconds = config.number("tokens_per_second")
    image = image_processor.window_settings(source, patch, 2, frames, window, seconds, max_pixels) | pixels
    full = config.get("fullatt_block_indexes")
    if full is None:
        raise config.misfit("fullatt_block_indexes", None, "a list of layers")
    spec = WindowSpec(
        hidden_size=config.size("hidden_size"),
        intermediate_size=config.size("intermediate_size"),
        num_heads=config.size("num_heads"),
        depth=config.size("depth"),
        full=tuple(full),
        window=window,
        patch_size=patch,
        frames=frames,
        max_tokens=image["max_pixels"] // (2 * patch) ** 2,
    )
    return spec, image


def _entries(vision: Vision, decoder: Decoder) -> dict[str, Entry]:
    found = entries(
        vision,
        "vision_encoder.",
        [
            ("patch_embed.", under(_TOWER, "patch_embed.proj.")),
            ("norm.", under(_TOWER, "merger.ln_q.")),
            ("projector.linear_1.", under(_TOWER, "merger.mlp.0.")),
            ("projector.linear_2.", under(_TOWER, "merger.mlp.2.")),
            ("", _TOWER),
        ],
    )
    return found | language_entries(decoder, _DECODER, _HEAD)

"""Tables of the keys of ``config.json``, by family and part. See ``checkpoint_keys``."""

from __future__ import annotations

from collections.abc import Mapping

from foveate.export.keys.generation_keys import GENERATION
from foveate.export.keys.key_table import FamilyKeys, Key, Table, irrelevant, refused, used

__all__ = [
    "CLIP",
    "CLIP_VISION",
    "INTRODUCTION",
    "LLAVA",
    "LLAVA_NEXT",
    "NESTED",
    "QWEN",
    "QWEN_VISION",
    "TEXT",
    "beside",
    "sections",
]

INTRODUCTION = """# Keys of a checkpoint

This page lists what `foveate build` does with every key in the settings files of the model families that
it supports. A key is *used*, or it is *irrelevant* because it changes no answer, or it is *refused*: the
build stops and names the key, unless its value is harmless. Null always counts as absent. A key that is
in no table is named in a warning.

If `generation_config.json` is missing, its keys are read from `config.json`; the tables of `config.json`
do not repeat them. Keys of adapters (`adapter_config.json`) and of quantized weights
(`quantization_config`) are not listed: the modules that read them refuse unsupported values.

`make generated` writes this page from the tables in `export/keys/config_keys.py` and
`export/keys/processor_keys.py`."""

_TRAINING = "acts in training only"
_ORIGIN = "says where the file comes from"
_OTHER_TASK = "belongs to models for other tasks"
_OUTPUT = "says what transformers returns besides answers"
_SPEED = "changes how fast transformers computes, not its results"
_RESAVED = "the tokenizer's files have the token"

_BASE: Table = (
    used("the kind of model", "model_type")
    | irrelevant(_ORIGIN, "transformers_version", "_name_or_path", "name_or_path", "_commit_hash")
    | irrelevant(_ORIGIN, "unsloth_version", "unsloth_fixed")
    | irrelevant("--precision says how numbers are held", "dtype", "torch_dtype", "use_bfloat16")
    | irrelevant(_OTHER_TASK, "id2label", "label2id", "num_labels", "problem_type", "finetuning_task")
    | irrelevant(_OTHER_TASK, "task_specific_params", "prefix", "sep_token_id", "decoder_start_token_id")
    | irrelevant(_OTHER_TASK, "is_decoder", "cross_attention_hidden_size", "tie_encoder_decoder")
    | irrelevant(_OUTPUT, "output_hidden_states", "output_attentions", "return_dict", "use_return_dict")
    | irrelevant(_OUTPUT, "tie_last_hidden_states")
    | irrelevant(_SPEED, "use_cache", "torchscript", "tf_legacy_loss", "chunk_size_feed_forward")
    | irrelevant(_SPEED, "attn_implementation", "_attn_implementation", "_attn_implementation_autoset")
    | irrelevant(_SPEED, "_attn_implementation_internal", "_experts_implementation")
    | irrelevant(_SPEED, "_experts_implementation_internal", "experts_implementation", "pretraining_tp")
    | irrelevant(_TRAINING, "initializer_range", "initializer_factor", "attention_dropout", "dropout")
    | irrelevant(_TRAINING, "gradient_checkpointing", "ignore_index")
    | irrelevant(_RESAVED, "tokenizer_class", "bos_token_id")
    | irrelevant("the outermost architecture counts", "architectures")
    | refused("layers that are built differently are not supported", ({},), "per_layer_config")
    | refused("removed attention heads are not supported", ({},), "pruned_heads")
    | refused(
        "encoder-decoder models are not supported", (False,), "is_encoder_decoder", "add_cross_attention"
    )
    | refused("a checkpoint's own code is not run", ({},), "auto_map")
)
_GENERATION = {
    name: Key(
        key.status, f"{key.why} (where generation_config.json is missing)", by="export/settings/generation.py"
    )
    for name, key in GENERATION.items()
    if name not in _BASE
}
_INNER = (
    _GENERATION
    | _BASE
    | refused("quantization is read at the top of the config only", ({},), "quantization_config")
)

_TOP_BASE: Table = (
    _GENERATION
    | _BASE
    | used(
        "how weights are quantized; export/checkpoints/prequantized.py refuses unsupported formats",
        "quantization_config",
    )
    | used("the parts of the model", "text_config", "vision_config")
    | used("whether the head is the table of embeddings", "tie_word_embeddings")
    | used("ends an answer, or fills up", "eos_token_id", "pad_token_id")
)
LLAVA: Table = (
    _TOP_BASE
    | refused("another class computes something else", ("LlavaForConditionalGeneration",), "architectures")
    | used("the token that images take the place of", "image_token_index", "image_token_id")
    | used("which features of the vision tower enter the projector", "vision_feature_layer")
    | refused("visual tokens never include the class token", ("default",), "vision_feature_select_strategy")
    | used("the projector's form", "projector_hidden_act", "multimodal_projector_bias")
    | irrelevant("follows from the vision tower's sizes", "image_seq_length")
    | irrelevant("text_config has it", "vocab_size", "hidden_size")
    | refused(
        "the original LLaVA format is not supported; use Hugging Face's, named llava-hf/...",
        (),
        "mm_vision_tower",
    )
)
LLAVA_NEXT: Table = (
    LLAVA
    | refused(
        "another class computes something else", ("LlavaNextForConditionalGeneration",), "architectures"
    )
    | used("the canvases that images are cut on", "image_grid_pinpoints")
    | irrelevant("transformers always reads the newline", "use_image_newline_parameter")
)
_QWEN_IDS = irrelevant(
    "the top of the config, or the chat template, has it",
    *("video_token_id", "vision_start_token_id", "vision_end_token_id", "vision_token_id"),
)
QWEN: Table = (
    _TOP_BASE
    | refused(
        "another class computes something else", ("Qwen2_5_VLForConditionalGeneration",), "architectures"
    )
    | used("the token that images take the place of", "image_token_id")
    | _QWEN_IDS
    | used("the token that videos take the place of", "video_token_id")
)
_CLIP: Table = (
    _TOP_BASE
    | irrelevant("the features of both towers are read, whatever the class", "architectures")
    | used("the parts of the model, in older files", "text_config_dict", "vision_config_dict")
    | used("the width of the joint space", "projection_dim")
    | irrelevant("scales logits that are not used", "logit_scale_init_value")
    | irrelevant("there is no head", "tie_word_embeddings")
    | irrelevant("text_config has it", "eos_token_id", "pad_token_id")
)

_SIZES = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
_DECODER: Table = (
    _INNER
    | used("a size", *_SIZES, "num_key_value_heads", "head_dim", "vocab_size")
    | used("the largest number of tokens of prompt and answer together", "max_position_embeddings")
    | used("a constant of the norms", "rms_norm_eps")
    | used("the rotary embedding", "rope_theta", "rope_scaling", "rope_parameters")
    | refused("the rotary embedding covers whole heads", (1.0,), "partial_rotary_factor")
    | irrelevant("belongs to scaled rotary embeddings, which are refused", "original_max_position_embeddings")
    | refused("the MLP has one activation", ("silu",), "hidden_act")
    | used("whether the head is the table of embeddings", "tie_word_embeddings")
    | used("ends an answer, or fills up", "eos_token_id", "pad_token_id")
)
_FULL = refused("layers with a window are not supported", ("full_attention", "attention"), "layer_types")
_LLAMA: Table = (
    _DECODER
    | refused("these layers have no biases", (False,), "attention_bias", "mlp_bias")
    | irrelevant("belongs to other families: LLaMA has no windows", "sliding_window", "use_sliding_window")
    | irrelevant("belongs to other families: LLaMA has no windows", "max_window_layers", "layer_types")
    | irrelevant("max_position_embeddings is used in its place", "max_sequence_length")
)
_MISTRAL: Table = (
    _DECODER
    | _FULL
    | used("refused if it is smaller than max_position_embeddings", "sliding_window")
    | irrelevant("belongs to other families: Mistral has no such biases", "attention_bias", "mlp_bias")
    | irrelevant(
        "belongs to other families: sliding_window decides", "use_sliding_window", "max_window_layers"
    )
)
_QWEN_TEXT: Table = (
    _DECODER
    | _FULL
    | refused("layers with a window are not supported", (False,), "use_sliding_window")
    | irrelevant("use_sliding_window must be false", "sliding_window", "max_window_layers")
    | irrelevant("Qwen2.5-VL's layers always have the same biases", "attention_bias", "mlp_bias")
    | irrelevant("the top of the config has it", "image_token_id")
    | _QWEN_IDS
)
_CLIP_TEXT: Table = (
    _INNER
    | used("a size", *_SIZES, "vocab_size", "max_position_embeddings")
    | used("the activation; refused if it is unknown", "hidden_act")
    | used("a constant of the norms", "layer_norm_eps")
    | used("the token whose row represents the text", "eos_token_id")
    | irrelevant("the top of the config has it", "projection_dim")
    | irrelevant("texts are padded with their end token", "pad_token_id")
    | irrelevant("there is no head", "tie_word_embeddings")
)
CLIP_VISION: Table = (
    _INNER
    | used("a size", *_SIZES, "image_size", "patch_size")
    | used("the activation; refused if it is unknown", "hidden_act")
    | used("a constant of the norms", "layer_norm_eps")
    | refused("images have three channels", (3,), "num_channels")
    | irrelevant("features are read before the projection", "projection_dim")
    | irrelevant(
        "a vision tower has no vocabulary",
        "vocab_size",
        "tie_word_embeddings",
        "eos_token_id",
        "pad_token_id",
    )
)
QWEN_VISION: Table = (
    _INNER
    | used("a size", "depth", "hidden_size", "intermediate_size", "num_heads", "out_hidden_size")
    | used("how images become patches and tokens", "patch_size", "temporal_patch_size", "spatial_merge_size")
    | used("the attention windows, and the layers without them", "window_size", "fullatt_block_indexes")
    | used("how position ids grow with time", "tokens_per_second")
    | refused("the MLP has one activation", ("silu",), "hidden_act")
    | refused("images have three channels", (3,), "in_channels", "in_chans")
    | irrelevant("patch_size is used in its place", "spatial_patch_size")
    | used("the rotary embedding", "rope_parameters")
    | irrelevant("a vision encoder has no vocabulary", "tie_word_embeddings", "eos_token_id", "pad_token_id")
)

_SCALED = "belongs to scaled rotary embeddings, which are refused"
_ROPE: Table = (
    used("the kind of rotary embedding; refused if it scales", "rope_type", "type")
    | used("its base", "rope_theta")
    | used("refused unless 1", "partial_rotary_factor")
    | used("frequencies for time, height and width", "mrope_section")
    | irrelevant(_SCALED, "factor", "original_max_position_embeddings", "attention_factor", "beta_fast")
    | irrelevant(_SCALED, "beta_slow", "short_factor", "long_factor", "low_freq_factor", "high_freq_factor")
    | irrelevant(_SCALED, "mscale", "mscale_all_dim", "truncate", "finetuned", "llama_4_scaling_beta")
    | refused("one rotary embedding serves all layers", (), "full_attention", "sliding_attention")
)
_VISION_ROPE: Table = (
    refused("positions are rows and columns of the image", ("axial", "default"), "rope_type", "type")
    | refused("the base is fixed", (10000.0,), "rope_theta")
    | refused("the rotary embedding covers whole heads", (1.0,), "partial_rotary_factor")
)

TEXT: dict[str, Table] = {
    "llama": _LLAMA,
    "mistral": _MISTRAL,
    "qwen2_5_vl_text": _QWEN_TEXT,
    "qwen2_5_vl": _QWEN_TEXT,
    "clip_text_model": _CLIP_TEXT,
}
"""The table of a ``text_config`` by its ``model_type``. ``export/settings/hf_config.py`` refuses other types.
"""
CLIP = FamilyKeys(top=_CLIP, text="clip_text_model", vision=CLIP_VISION, image={}, tokenizer={})
"""The tables of a vision tower's CLIP checkpoint."""
NESTED: dict[str, dict[str, Table]] = {
    "rope_scaling": {"text_config": _ROPE, "vision_config": _VISION_ROPE},
    "rope_parameters": {"text_config": _ROPE, "vision_config": _VISION_ROPE},
}
"""The tables of objects inside ``text_config`` and ``vision_config``."""


def beside(table: Table) -> Table:
    """Return the table of a ``text_config``'s keys that are repeated at the top, where they are not read."""
    return irrelevant("text_config exists, so the key is not read here", *table)


def sections(families: Mapping[str, FamilyKeys]) -> dict[str, Table]:
    """Return the tables of the documentation by title. ``families`` are given by their titles."""
    own = {**families, "CLIP (--clip)": CLIP}
    titles = {f"config.json of {name}": _without(keys.top, _BASE) for name, keys in own.items()}
    titles |= {
        "text_config: LLaMA": _without(_LLAMA, _INNER),
        "text_config: Mistral": _without(_MISTRAL, _INNER),
        "text_config: Qwen2.5-VL (or at the top of its config.json)": _without(_QWEN_TEXT, _INNER),
        "text_config: CLIP": _without(_CLIP_TEXT, _INNER),
        "vision_config: CLIP": _without(CLIP_VISION, _INNER),
        "vision_config: Qwen2.5-VL": _without(QWEN_VISION, _INNER),
        "rope_scaling and rope_parameters of a text_config": _ROPE,
        "rope_parameters of a vision_config": _VISION_ROPE,
    }
    return {"config.json and everything in it": _without(_INNER, {})} | titles


def _without(table: Table, base: Table) -> Table:
    """Return the rows of ``table`` that differ from ``base``, without keys of generation_config.json."""
    return {
        name: key
        for name, key in table.items()
        if base.get(name) != key and key not in (_GENERATION.get(name), GENERATION.get(name))
    }

"""Tables of the keys of processor and tokenizer files. See ``checkpoint_keys``."""

from __future__ import annotations

from foveate.export.keys.generation_keys import GENERATION
from foveate.export.keys.key_table import FamilyKeys, Table, irrelevant, refused, used

__all__ = ["CLIP", "FILES", "QWEN_TOKENIZER", "TILES", "TOKENIZER", "WINDOWS", "sections", "tables"]

_ORIGIN = "says where the file comes from"
_CALL = "says how transformers is called or computes, not its results"
_CODE = refused("a checkpoint's own code is not run", ({},), "auto_map")

_PIXELS: Table = (
    _CODE
    | used("a step", "do_resize", "do_rescale", "do_normalize")
    | used("a step's numbers", "size", "resample", "rescale_factor", "image_mean", "image_std")
    | irrelevant("images are always converted to RGB", "do_convert_rgb")
    | irrelevant(_CALL, "data_format", "input_data_format", "device", "return_tensors", "disable_grouping")
    | irrelevant(
        _CALL,
        "_valid_processor_keys",
        "_valid_kwargs_names",
        "model_valid_processing_keys",
        "use_fast",
        "backend",
        "model_input_names",
    )
    | irrelevant(_ORIGIN, "processor_class", "_processor_class")
)
_IMAGE: Table = (
    _PIXELS
    | used("the kind of image processor", "image_processor_type", "feature_extractor_type")
    | irrelevant("follows from the vision tower's sizes", "image_seq_length")
    | irrelevant("acts only with do_pad", "pad_size")
)
_CROPPING = used("a step", "do_center_crop") | used("a step's numbers", "crop_size", "default_to_square")
CLIP: Table = _IMAGE | _CROPPING | used("refused if true", "do_pad", "use_square_size")
TILES: Table = (
    _IMAGE
    | _CROPPING
    | used("the canvases that images are cut on", "image_grid_pinpoints")
    | irrelevant("pads batches of images; images are processed one at a time", "do_pad")
    | irrelevant("follows from image_grid_pinpoints", "aspect_ratio_setting")
)
_UNREAD = "Qwen2-VL's processor does not read it"
_PATCHES = used("how images become patches and tokens", "patch_size", "temporal_patch_size", "merge_size")
WINDOWS: Table = (
    _IMAGE
    | _PATCHES
    | used("the smallest and largest number of pixels", "min_pixels", "max_pixels")
    | irrelevant(_UNREAD, "do_center_crop", "crop_size", "do_pad", "default_to_square")
    | used("frames of videos, if no other file says", "fps", "min_frames", "max_frames")
)
_VIDEO: Table = (
    _PIXELS
    | _PATCHES
    | used("the kind of video processor", "video_processor_type")
    | used("the number of frames", "fps", "min_frames", "max_frames")
    | used("the smallest and largest number of pixels of a frame", "min_pixels", "max_pixels")
    | used("the largest number of tokens of all frames together", "max_video_tokens")
    | used("refused: fps decides the number of frames", "num_frames")
    | irrelevant("frames are always chosen by fps, as Qwen's own tools do", "do_sample_frames")
    | irrelevant(
        "the pixels of all frames are always limited, as by Qwen's own tools", "cap_pixels_per_frame"
    )
    | irrelevant(
        _UNREAD, "do_center_crop", "crop_size", "do_pad", "pad_size", "default_to_square", "size_divisor"
    )
    | irrelevant(_CALL, "return_metadata", "video_metadata", "image_processor_type", "use_token_compression")
)
_PROCESSOR: Table = (
    _CODE
    | used("the image processor", "image_processor")
    | used("the video processor", "video_processor")
    | used("the chat template", "chat_template")
    | irrelevant(
        "counts an image's tokens in the prompt; their number follows from the vision encoder",
        *("patch_size", "image_seq_length"),
        *("num_additional_image_tokens", "vision_feature_select_strategy"),
    )
    | irrelevant("config.json has the token's id", "image_token", "video_token")
    | irrelevant(_ORIGIN, "processor_class")
)

_IN_FILE = "tokenizer.json has it"
_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_MEDIA = (
    *("image_token", "video_token", "audio_token", "boi_token", "eoi_token"),
    *("vision_bos_token", "vision_eos_token", "image_break_token", "image_end_token"),
)
_TOKENS: Table = (
    used("chat templates use it by name", *_NAMES, *_MEDIA)
    | used("refused if tokenizer.json lacks one that is needed", "additional_special_tokens")
    | used("refused if tokenizer.json lacks one that is needed", "extra_special_tokens")
)
TOKENIZER: Table = (
    _TOKENS
    | _CODE
    | used("the chat template", "chat_template")
    | used("names of tokens for chat templates", "model_specific_special_tokens")
    | used("refused if tokenizer.json lacks one that is needed", "added_tokens_decoder")
    | used("the default special tokens of chat templates", "tokenizer_class")
    | irrelevant("transformers ignores it if tokenizer.json exists", "add_bos_token", "add_eos_token")
    | irrelevant(_IN_FILE, "add_prefix_space", "legacy", "from_slow", "sp_model_kwargs", "do_lower_case")
    | irrelevant(
        _IN_FILE, "trim_offsets", "errors", "normalize", "vocab_size", "init_inputs", "add_dummy_prefix"
    )
    | irrelevant("the bundle limits a prompt's length", "model_max_length", "max_len", "max_length")
    | irrelevant(
        "prompts are neither padded nor truncated", "padding_side", "truncation_side", "padding", "stride"
    )
    | irrelevant("prompts are neither padded nor truncated", "truncation", "truncation_strategy")
    | irrelevant("prompts are neither padded nor truncated", "pad_to_multiple_of", "pad_token_type_id")
    | used(
        "has no effect for BPE tokenizers, as in transformers; refused for others",
        "clean_up_tokenization_spaces",
    )
    | refused(
        "spaces before punctuation are kept",
        (False,),
        "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output",
    )
    | irrelevant("text from users never becomes a special token", "split_special_tokens")
    | refused("the tokenizer's pattern is not changed", (False,), "fix_mistral_regex")
    | irrelevant("the chat template has the system prompt", "use_default_system_prompt")
    | irrelevant("answers are not parsed", "response_template", "response_schema", "chat_control_tokens")
    | irrelevant(_ORIGIN, "name_or_path", "special_tokens_map_file", "tokenizer_file", "processor_class")
    | irrelevant(_ORIGIN, "backend", "is_local", "local_files_only", "files_loaded", "trust_remote_code")
    | irrelevant(_ORIGIN, "slow_tokenizer_class", "device_map", "verbose", "__type", "model_input_names")
)

QWEN_TOKENIZER: Table = TOKENIZER | refused(
    "Qwen2Tokenizer would put a space in front", (False,), "add_prefix_space"
)

FILES = (
    "generation_config.json",
    "processor_config.json",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
)
"""Every settings file besides ``config.json``."""


def tables(keys: FamilyKeys) -> dict[tuple[str, ...], Table]:
    """Return the table of each file and of objects in it, by the file's name and the keys that lead there."""
    return {
        ("generation_config.json",): GENERATION,
        ("processor_config.json",): _PROCESSOR,
        ("processor_config.json", "image_processor"): keys.image,
        ("processor_config.json", "video_processor"): _VIDEO,
        ("preprocessor_config.json",): keys.image,
        ("video_preprocessor_config.json",): _VIDEO,
        ("tokenizer_config.json",): keys.tokenizer,
        ("special_tokens_map.json",): _TOKENS,
    }


def sections() -> dict[str, Table]:
    """Return the tables of the documentation by title."""
    changed = {name: key for name, key in QWEN_TOKENIZER.items() if TOKENIZER[name] != key}
    inside = "in processor_config.json"
    return {
        "generation_config.json": GENERATION,
        f"Image processor of LLaVA (preprocessor_config.json, or image_processor {inside})": CLIP,
        "Image processor of LLaVA-NeXT": TILES,
        "Image processor of Qwen2.5-VL": WINDOWS,
        f"Video processor (video_preprocessor_config.json, or video_processor {inside})": _VIDEO,
        "processor_config.json": _PROCESSOR,
        "tokenizer_config.json": TOKENIZER,
        "tokenizer_config.json of Qwen2.5-VL": changed,
        "special_tokens_map.json": _TOKENS,
    }

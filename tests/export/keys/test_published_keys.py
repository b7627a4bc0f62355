"""Settings files of published checkpoints, by many versions of transformers: no warning, no refusal."""

from __future__ import annotations

import pytest

from foveate.export import models
from foveate.export.checkpoints.random_weights import Dummy
from foveate.export.keys import checkpoint_keys

# What transformers 4.3x wrote into every part of a config.
OLD = {
    "_name_or_path": "",
    "add_cross_attention": False,
    "architectures": None,
    "bad_words_ids": None,
    "begin_suppress_tokens": None,
    "bos_token_id": 0,
    "chunk_size_feed_forward": 0,
    "cross_attention_hidden_size": None,
    "decoder_start_token_id": None,
    "diversity_penalty": 0.0,
    "do_sample": False,
    "early_stopping": False,
    "encoder_no_repeat_ngram_size": 0,
    "eos_token_id": 2,
    "exponential_decay_length_penalty": None,
    "finetuning_task": None,
    "forced_bos_token_id": None,
    "forced_eos_token_id": None,
    "id2label": {"0": "LABEL_0", "1": "LABEL_1"},
    "is_decoder": False,
    "is_encoder_decoder": False,
    "label2id": {"LABEL_0": 0, "LABEL_1": 1},
    "length_penalty": 1.0,
    "max_length": 20,
    "min_length": 0,
    "no_repeat_ngram_size": 0,
    "num_beam_groups": 1,
    "num_beams": 1,
    "num_return_sequences": 1,
    "output_attentions": False,
    "output_hidden_states": False,
    "output_scores": False,
    "pad_token_id": 1,
    "prefix": None,
    "problem_type": None,
    "pruned_heads": {},
    "remove_invalid_values": False,
    "repetition_penalty": 1.0,
    "return_dict": True,
    "return_dict_in_generate": False,
    "sep_token_id": None,
    "suppress_tokens": None,
    "task_specific_params": None,
    "temperature": 1.0,
    "tf_legacy_loss": False,
    "tie_encoder_decoder": False,
    "tie_word_embeddings": True,
    "tokenizer_class": None,
    "top_k": 50,
    "top_p": 1.0,
    "torch_dtype": None,
    "torchscript": False,
    "typical_p": 1.0,
    "use_bfloat16": False,
}
TOWER = OLD | {
    "attention_dropout": 0.0,
    "hidden_act": "quick_gelu",
    "hidden_size": 1024,
    "image_size": 336,
    "initializer_factor": 1.0,
    "initializer_range": 0.02,
    "intermediate_size": 4096,
    "layer_norm_eps": 1e-05,
    "model_type": "clip_vision_model",
    "num_attention_heads": 16,
    "num_channels": 3,
    "num_hidden_layers": 24,
    "patch_size": 14,
    "projection_dim": 768,
    "dropout": 0.0,
    "vocab_size": 32000,
}
LLAMA = OLD | {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "head_dim": 128,
    "initializer_range": 0.02,
    "intermediate_size": 11008,
    "max_position_embeddings": 4096,
    "mlp_bias": False,
    "model_type": "llama",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 32,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "rope_theta": 10000.0,
    "use_cache": True,
    "vocab_size": 32064,
}
LLAVA = {
    "architectures": ["LlavaForConditionalGeneration"],
    "ignore_index": -100,
    "image_token_index": 32000,
    "image_seq_length": 576,
    "model_type": "llava",
    "pad_token_id": 32001,
    "projector_hidden_act": "gelu",
    "text_config": LLAMA,
    "tie_word_embeddings": False,
    "torch_dtype": "float16",
    "transformers_version": "4.36.0.dev0",
    "vision_config": TOWER,
    "vision_feature_layer": -2,
    "vision_feature_select_strategy": "default",
    "vocab_size": 32064,
}
NEXT = LLAVA | {
    "architectures": ["LlavaNextForConditionalGeneration"],
    "model_type": "llava_next",
    "image_grid_pinpoints": [[336, 672], [672, 336]],
    "use_image_newline_parameter": True,
    "text_config": LLAMA | {"model_type": "mistral", "sliding_window": None},
}
QWEN_TEXT = {
    "attention_dropout": 0.0,
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "hidden_act": "silu",
    "hidden_size": 3584,
    "initializer_range": 0.02,
    "intermediate_size": 18944,
    "max_position_embeddings": 128000,
    "max_window_layers": 28,
    "num_attention_heads": 28,
    "num_hidden_layers": 28,
    "num_key_value_heads": 4,
    "rms_norm_eps": 1e-06,
    "rope_scaling": {"mrope_section": [16, 24, 24], "rope_type": "default", "type": "default"},
    "rope_theta": 1000000.0,
    "sliding_window": 32768,
    "use_cache": True,
    "use_sliding_window": False,
    "vocab_size": 152064,
}
QWEN_TOP = {
    "architectures": ["Qwen2_5_VLForConditionalGeneration"],
    "vision_start_token_id": 151652,
    "vision_end_token_id": 151653,
    "vision_token_id": 151654,
    "image_token_id": 151655,
    "video_token_id": 151656,
    "model_type": "qwen2_5_vl",
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.41.2",
    "vision_config": {
        "depth": 32,
        "hidden_act": "silu",
        "hidden_size": 1280,
        "intermediate_size": 3420,
        "num_heads": 16,
        "in_chans": 3,
        "in_channels": 3,
        "model_type": "qwen2_5_vl",
        "out_hidden_size": 3584,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "spatial_patch_size": 14,
        "window_size": 112,
        "fullatt_block_indexes": [7, 15, 23, 31],
        "tokens_per_second": 2,
        "temporal_patch_size": 2,
        "initializer_range": 0.02,
    },
}
NESTED_TEXT = QWEN_TEXT | {
    "architectures": ["Qwen2_5_VLForConditionalGeneration"],
    "image_token_id": None,
    "layer_types": ["full_attention"] * 28,
    "model_type": "qwen2_5_vl_text",
    "vision_start_token_id": 151652,
    "vision_token_id": 151654,
}
CONFIGS = {
    "llava": LLAVA,
    "llava_next": NEXT,
    "qwen2_5_vl, flat": QWEN_TOP | QWEN_TEXT,
    "qwen2_5_vl, nested": QWEN_TOP | {"text_config": NESTED_TEXT},
    "qwen2_5_vl, both": QWEN_TOP | QWEN_TEXT | {"text_config": NESTED_TEXT},
    "qwen2_5_vl, quantized": QWEN_TOP
    | QWEN_TEXT
    | {"quantization_config": {"quant_method": "awq", "bits": 4}},
}
STEPS = {
    "crop_size": {"height": 336, "width": 336},
    "do_center_crop": True,
    "do_convert_rgb": True,
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "resample": 3,
    "rescale_factor": 1 / 255,
    "size": {"shortest_edge": 336},
    "_valid_processor_keys": ["images", "do_resize"],
    "processor_class": "LlavaProcessor",
}
FAST = dict.fromkeys(
    ("data_format", "device", "disable_grouping", "do_pad", "input_data_format", "pad_size", "return_tensors")
)
PATCHES = {
    "min_pixels": 3136,
    "max_pixels": 12845056,
    "patch_size": 14,
    "temporal_patch_size": 2,
    "merge_size": 2,
}
TOKENIZER = {
    "add_bos_token": True,
    "add_eos_token": False,
    "add_prefix_space": None,
    "added_tokens_decoder": {},
    "additional_special_tokens": [],
    "bos_token": "<s>",
    "chat_template": "{{ messages }}",
    "clean_up_tokenization_spaces": False,
    "eos_token": "</s>",
    "errors": "replace",
    "extra_special_tokens": {"image_token": "<image>"},
    "image_token": "<image>",
    "legacy": False,
    "model_max_length": 1000000000000000019884624838656,
    "pad_token": "<pad>",
    "padding_side": "left",
    "processor_class": "LlavaProcessor",
    "sp_model_kwargs": {},
    "split_special_tokens": False,
    "tokenizer_class": "LlamaTokenizer",
    "trust_remote_code": False,
    "unk_token": "<unk>",
    "use_default_system_prompt": False,
}
FILES = {
    "llava": {
        "preprocessor_config.json": STEPS | FAST | {"image_processor_type": "CLIPImageProcessor"},
        "processor_config.json": {
            "image_token": "<image>",
            "num_additional_image_tokens": 1,
            "patch_size": 14,
            "processor_class": "LlavaProcessor",
            "vision_feature_select_strategy": "default",
        },
    },
    "llava_next": {
        "preprocessor_config.json": STEPS
        | {
            "aspect_ratio_setting": "anyres",
            "do_pad": True,
            "image_grid_pinpoints": [[336, 672], [672, 336]],
            "image_processor_type": "LlavaNextImageProcessor",
        },
    },
    "qwen2_5_vl": {
        "preprocessor_config.json": STEPS
        | FAST
        | PATCHES
        | {"image_processor_type": "Qwen2VLImageProcessorFast"},
        "video_preprocessor_config.json": STEPS
        | FAST
        | PATCHES
        | {
            "_valid_kwargs_names": ["do_convert_rgb"],
            "default_to_square": True,
            "do_sample_frames": False,
            "fps": None,
            "max_frames": 768,
            "min_frames": 4,
            "model_valid_processing_keys": ["do_convert_rgb"],
            "num_frames": None,
            "return_metadata": False,
            "size_divisor": None,
            "video_metadata": None,
            "video_processor_type": "Qwen2VLVideoProcessor",
        },
    },
}


class Published(Dummy):
    def __init__(self, config, files):
        super().__init__("published", config)
        self.files = files

    def json(self, name):
        return self.files.get(name)


@pytest.mark.parametrize("form", CONFIGS)
def test_published_forms(form, capfd):
    files = FILES[form.partition(",")[0]]
    shared = {
        "tokenizer_config.json": TOKENIZER,
        "special_tokens_map.json": {
            "bos_token": {"content": "<s>"},
            "pad_token": "<pad>",
            "unk_token": "<unk>",
        },
        "generation_config.json": {"eos_token_id": 2, "pad_token_id": 1, "transformers_version": "4.36.0"},
    }
    keys = models.family(form.partition(",")[0]).KEYS
    checkpoint_keys.check(Published(CONFIGS[form], files | shared), keys)
    assert capfd.readouterr().err == ""


def test_published_clips(capfd):
    text = OLD | {
        "attention_dropout": 0.0,
        "dropout": 0.0,
        "hidden_act": "quick_gelu",
        "hidden_size": 768,
        "initializer_factor": 1.0,
        "initializer_range": 0.02,
        "intermediate_size": 3072,
        "layer_norm_eps": 1e-05,
        "max_position_embeddings": 77,
        "model_type": "clip_text_model",
        "num_attention_heads": 12,
        "num_hidden_layers": 12,
        "projection_dim": 768,
        "vocab_size": 49408,
    }
    config = {
        "_name_or_path": "clip-vit-large-patch14/",
        "architectures": ["CLIPModel"],
        "initializer_factor": 1.0,
        "logit_scale_init_value": 2.6592,
        "model_type": "clip",
        "projection_dim": 768,
        "text_config": text,
        "text_config_dict": {"hidden_size": 768, "intermediate_size": 3072},
        "torch_dtype": "float32",
        "transformers_version": None,
        "vision_config": TOWER | {"vocab_size": None},
        "vision_config_dict": {"image_size": 336},
    }
    checkpoint_keys.check_clip(Published(config, {}))
    assert capfd.readouterr().err == ""

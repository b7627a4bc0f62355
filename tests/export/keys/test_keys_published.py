"""Settings files of published checkpoints, by many versions of transformers: no warning, no refusal."""

from __future__ import annotations

import pytest
from published_settings import CONFIGS, FILES, OLD, TOKENIZER, TOWER

from foveate.export import models
from foveate.export.checkpoints.random_weights import Dummy
from foveate.export.keys import checkpoint_keys


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

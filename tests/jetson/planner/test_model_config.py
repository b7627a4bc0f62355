"""A config.json is planned as the model of that name."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from foveate.engines.errors import UserError
from foveate.export.models import families, family
from foveate.jetson.planner import model_sizes


def test_a_config_json_is_as_good_as_a_name(tmp_path):
    vision = {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "image_size": 336,
        "patch_size": 14,
    }
    config = {"model_type": "llava", "vision_config": vision, "text_config": {"vocab_size": 32064}}
    file = tmp_path / "config.json"
    file.write_text(json.dumps(config))
    ours, theirs = model_sizes.model(str(file), "sppruner"), model_sizes.model("llava-1.5-7b", "sppruner")
    assert ours.vision == theirs.vision
    assert replace(ours.decoder, max_positions=0) == replace(theirs.decoder, max_positions=0)
    file.write_text(json.dumps({"model_type": "gpt2"}))
    with pytest.raises(UserError, match="cannot plan from"):
        model_sizes.model(str(file))


@pytest.mark.parametrize("name", [name for each in families() for name in family(each).CONFIGS])
def test_the_config_of_every_model_that_is_known_by_name(name, tmp_path):
    """A file as good as the name: a family of known parts needs nothing in jetson."""
    (config,) = (family(each).CONFIGS[name] for each in families() if name in family(each).CONFIGS)
    file = tmp_path / "config.json"
    file.write_text(json.dumps(config))
    ours, theirs = model_sizes.model(str(file)).manifest, model_sizes.model(name).manifest
    assert model_sizes.model(str(tmp_path)).manifest.decoder == ours.decoder, "its folder is as good"
    assert model_sizes.model(str(file)).most_visual_tokens == model_sizes.model(name).most_visual_tokens
    assert (ours.vision, ours.decoder, ours.num_visual_tokens) == (
        theirs.vision,
        theirs.decoder,
        theirs.num_visual_tokens,
    )


@pytest.mark.parametrize(
    ("name", "hub_id"), [pair for each in families() for pair in family(each).CHECKPOINTS.items()]
)
def test_the_hub_id_of_a_known_model_is_as_good_as_its_name(name, hub_id):
    assert model_sizes.model(hub_id) == model_sizes.model(name)


def test_qwen_configs_as_published(tmp_path):
    """Sizes of Qwen3-VL-4B-Instruct and Qwen2.5-VL-7B-Instruct."""
    text = {
        "hidden_size": 2560,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "intermediate_size": 9728,
        "vocab_size": 151936,
        "max_position_embeddings": 262144,
    }
    tower = {
        "deepstack_visual_indexes": [5, 11, 17],
        "depth": 24,
        "hidden_size": 1024,
        "num_heads": 16,
        "intermediate_size": 4096,
        "patch_size": 16,
        "spatial_merge_size": 2,
        "out_hidden_size": 2560,
    }
    config = {
        "model_type": "qwen3_vl",
        "text_config": text,
        "vision_config": tower,
        "tie_word_embeddings": True,
    }
    file = tmp_path / "config.json"
    file.write_text(json.dumps(config))
    ours, theirs = model_sizes.model(str(file)), model_sizes.model("qwen3-vl-4b")
    assert (ours.decoder, ours.vision) == (theirs.decoder, theirs.vision)
    assert ours.manifest.num_visual_tokens == 300
    flat = {
        "hidden_size": 3584,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "intermediate_size": 18944,
        "vocab_size": 152064,
        "max_position_embeddings": 128000,
    }
    tower = {
        "depth": 32,
        "hidden_size": 1280,
        "intermediate_size": 3420,
        "num_heads": 16,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "window_size": 112,
        "fullatt_block_indexes": [7, 15, 23, 31],
    }
    file.write_text(json.dumps({"model_type": "qwen2_5_vl", **flat, "vision_config": tower}))
    ours, theirs = model_sizes.model(str(file)), model_sizes.model("qwen2.5-vl-7b")
    assert (ours.decoder, ours.vision) == (theirs.decoder, theirs.vision)

"""Settings of checkpoints are held against the tables: unknown keys are named, others refused."""

from __future__ import annotations

import json
import shutil

import pytest
import qwen_checkpoint

from foveate.engines.errors import UserError
from foveate.export import models
from foveate.export.keys.key_table import Key


def test_checkpoints_as_transformers_saves_them_give_no_warning(checkpoint, capfd):
    models.load(str(checkpoint[0]))
    assert "does not know" not in capfd.readouterr().err


def test_unknown_keys_are_named_a_line_for_each_file(copy, edit_json, capfd):
    text = json.loads((copy / "config.json").read_text())["text_config"] | {"residual_multiplier": 2}
    edit_json(copy / "config.json", text_config=text, mm_gate=1)
    edit_json(copy / "tokenizer_config.json", lowercase_all=True)
    models.load(str(copy))
    lines = [line for line in capfd.readouterr().err.splitlines() if "does not know" in line]
    assert len(lines) == 2
    assert "what mm_gate, text_config.residual_multiplier in config.json mean," in lines[0]
    assert "what lowercase_all in tokenizer_config.json means," in lines[1]


REFUSED = {
    "another architecture": (
        "config.json",
        {"architectures": ["LlavaForSequenceClassification"]},
        "architectures",
    ),
    "its own code": ("config.json", {"auto_map": {"AutoModel": "modeling.MyModel"}}, "auto_map"),
    "layers that differ": (
        "config.json",
        {"per_layer_config": {"0": {"hidden_size": 3}}},
        "per_layer_config",
    ),
    "heads cut out": ("config.json", {"pruned_heads": {"0": [1]}}, "pruned_heads"),
    "original LLaVA": ("config.json", {"mm_vision_tower": "openai/clip"}, "mm_vision_tower"),
    "code of a processor": ("processor_config.json", {"auto_map": {"AutoProcessor": "p.P"}}, "auto_map"),
    "code of a tokenizer": (
        "tokenizer_config.json",
        {"auto_map": {"AutoTokenizer": ["t.T", None]}},
        "auto_map",
    ),
    "another pattern": ("tokenizer_config.json", {"fix_mistral_regex": True}, "fix_mistral_regex"),
}


@pytest.mark.parametrize(("file", "values", "named"), REFUSED.values(), ids=REFUSED)
def test_refused_keys_are_named(copy, edit_json, file, values, named):
    edit_json(copy / file, **values)
    with pytest.raises(UserError, match=f"{named} in {file} is not supported") as error:
        models.load(str(copy))
    assert str(error.value).count(" | ") == 2


INNER = {
    "partial rotary embedding": ("text_config", {"partial_rotary_factor": 0.5}),
    "activation": ("text_config", {"hidden_act": "gelu"}),
    "biases of the MLP": ("text_config", {"mlp_bias": True}),
    "quantized inside": ("text_config", {"quantization_config": {"quant_method": "awq"}}),
    "one colour": ("vision_config", {"num_channels": 1}),
}


@pytest.mark.parametrize(("part", "values"), INNER.values(), ids=INNER)
def test_refused_keys_inside_are_named(copy, edit_json, part, values):
    inner = json.loads((copy / "config.json").read_text())[part]
    edit_json(copy / "config.json", **{part: inner | values})
    with pytest.raises(UserError, match=rf"{part}\.{next(iter(values))} in config.json is not supported"):
        models.load(str(copy))


def test_embeddings_of_layers_are_refused(copy, edit_json):
    text = json.loads((copy / "config.json").read_text())["text_config"]
    text["rope_parameters"] = {"full_attention": {"rope_type": "default", "rope_theta": 1e4}}
    edit_json(copy / "config.json", text_config=text)
    with pytest.raises(UserError, match=r"text_config\.rope_parameters\.full_attention"):
        models.load(str(copy))


QWEN = {
    "windows": ({"use_sliding_window": True}, {}),
    "windows of some layers": ({"layer_types": ["full_attention", "sliding_attention"]}, {}),
    "another base": ({}, {"rope_parameters": {"rope_type": "axial", "rope_theta": 5000.0}}),
    "another activation": ({}, {"hidden_act": "gelu"}),
}


@pytest.mark.parametrize(("text", "vision"), QWEN.values(), ids=QWEN)
@pytest.mark.parametrize("flat", [False, True], ids=["nested", "flat"])
def test_refused_keys_of_qwen(tmp_path, text, vision, flat):
    qwen_checkpoint.save_checkpoint(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    values["text_config"] |= text
    values["vision_config"] |= vision
    if flat:
        values = values.pop("text_config") | values
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(UserError, match=next(iter(text | vision))):
        models.load(str(tmp_path))


def test_the_clip_checkpoint_is_held_against_its_table(llava_checkpoint, clip_checkpoint, tmp_path):
    clip = shutil.copytree(clip_checkpoint(2)[0], tmp_path / "clip")
    values = json.loads((clip / "config.json").read_text())
    values["text_config"]["pruned_heads"] = {"0": [1]}
    (clip / "config.json").write_text(json.dumps(values))
    with pytest.raises(UserError, match=r"text_config\.pruned_heads in config\.json"):
        models.load(str(llava_checkpoint()[0]), clip=str(clip))


def test_a_value_is_harmless_by_its_kind_too():
    key = Key("refused", "why", (False, 1.0, ["x"]))
    assert not any(map(key.refuses, (None, False, 1, 1.0, ["x"], [False, False])))
    assert all(map(key.refuses, (0, True, 2, [True], "false")))

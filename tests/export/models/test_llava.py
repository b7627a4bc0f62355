"""The LLaVA family: tiny models, true sizes, configs and checkpoints as transformers writes them."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from foveate.engines.errors import UserError
from foveate.export import models
from foveate.export.checkpoints.module_weights import fill
from foveate.export.models import llava

CASES = {
    "multi-head": {"kv_heads": 4},
    "grouped-query, tied": {"kv_heads": 2, "tied": True, "feature_layer": -1},
    "one key head, early features": {"kv_heads": 1, "feature_layer": -3},
    "a layer by its number": {"kv_heads": 4, "tied": True, "feature_layer": 2},
    "projector without bias": {
        "kv_heads": 2,
        "multimodal_projector_bias": False,
        "projector_hidden_act": "relu",
    },
}


def close(answer, truth, tolerance=1e-4):
    return (answer - truth).abs().max() <= tolerance * truth.abs().max()


def pixels(seed: int = 0, side: int = 56) -> torch.Tensor:
    return torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(seed))


def vision_of(parts, taps=()):
    return fill(parts.vision(taps), parts.weights, "vision_encoder.").eval()


def test_tiny_runs_and_is_the_same_every_time():
    answers = []
    for _ in range(2):
        parts = llava.tiny()
        answers.append(vision_of(parts, ("clip_image",))(pixels()))
    assert answers[0]["projected"].shape == (1, 64, 128)
    assert answers[0]["clip_image"].shape == (1, 64, 48)
    for name in answers[0]:
        assert torch.equal(answers[0][name], answers[1][name])
    assert 0.1 < answers[0]["projected"].std() < 10


def test_tiny_takes_options():
    parts = llava.tiny(kv_heads=1, tied=True, feature_layer=-1)
    assert parts.spec.decoder.num_kv_heads == 1
    assert parts.spec.vision.depth == 3
    assert torch.equal(parts.weights.get("llm.lm_head.weight"), parts.weights.get("embed_tokens").T)


@pytest.mark.parametrize(
    ("name", "hidden", "inner", "layers"),
    [("llava-1.5-7b", 4096, 11008, 32), ("llava-1.5-13b", 5120, 13824, 40)],
)
def test_dummies_have_the_true_size(name, hidden, inner, layers):
    parts = models.load(name, load_format="dummy")
    decoder, vision = parts.spec.decoder, parts.spec.vision
    assert (decoder.hidden_size, decoder.intermediate_size, decoder.num_layers) == (hidden, inner, layers)
    assert (decoder.vocab_size, decoder.max_positions, decoder.head_dim) == (32064, 4096, 128)
    assert (vision.num_tokens, vision.hidden_size, vision.depth, vision.joint_size) == (576, 1024, 23, 768)
    assert parts.weights.get("llm.layers.0.self_attn.k_proj.weight").shape == (hidden, hidden)
    assert parts.source == {"model": name, "revision": "none", "load_format": "dummy"}
    assert parts.image["size"] == [336, 336]
    assert parts.prompt["image_token_id"] == 32000


@pytest.mark.parametrize("options", CASES.values(), ids=CASES)
def test_image_and_text_give_the_logits_of_transformers(llava_checkpoint, options):
    path, model = llava_checkpoint(**options)
    parts = models.load(str(path))
    ids = torch.randint(5, 300, (1, 9), generator=torch.Generator().manual_seed(1))
    prompt = torch.cat([ids[:, :4], torch.full((1, 16), 3), ids[:, 4:]], dim=1)
    with torch.no_grad():
        projected = vision_of(parts)(pixels())["projected"]
        truth = torch.stack(model.get_image_features(pixel_values=pixels()).pooler_output)
        assert close(projected, truth)
        embeds = parts.weights.get("embed_tokens")[prompt]
        embeds[:, 4:20] = projected
        decoder, spec = fill(parts.decoder, parts.weights, "llm.").eval(), parts.spec.decoder
        past = [torch.zeros(1, spec.num_kv_heads, 32, spec.head_dim)] * (2 * spec.num_layers)
        rows = prompt.shape[1]
        logits, *_ = decoder(
            embeds, torch.arange(rows)[None], torch.tensor([0]), torch.tensor([rows - 1]), *past
        )
        expected = model(input_ids=prompt, pixel_values=pixels()).logits
    assert close(logits[:, 0], expected[:, -1])


FORMS = {
    "published": {"vision_tower.": "vision_tower.vision_model."},
    "module paths": {
        "language_model.model.": "model.language_model.",
        "language_model.lm_head.": "lm_head.",
        "vision_tower.": "model.vision_tower.",
        "multi_modal_projector.": "model.multi_modal_projector.",
    },
}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_names_and_dtypes_of_other_versions(llava_checkpoint, copy, form, dtype):
    path, model = llava_checkpoint()
    moved = {}
    for name, tensor in load_file(path / "model.safetensors").items():
        start = next((start for start in form if name.startswith(start)), "")
        moved[form.get(start, "") + name.removeprefix(start)] = tensor.to(dtype)
    assert not set(moved) <= set(load_file(path / "model.safetensors"))
    save_file(moved, copy / "model.safetensors")
    ours, theirs = models.load(str(copy)).weights, models.load(str(path)).weights
    for name in (
        "embed_tokens",
        "llm.lm_head.weight",
        "llm.norm.weight",
        "vision_encoder.projector.linear_2.bias",
    ):
        assert ours.get(name).dtype == (torch.float16 if dtype is torch.float16 else torch.float32)
        assert torch.equal(ours.get(name).float(), theirs.get(name).to(dtype).float())
    assert torch.equal(theirs.get("llm.lm_head.weight"), model.lm_head.weight.T)


def test_shards(llava_checkpoint, shards):
    assert len(list(shards.glob("*.safetensors"))) > 3
    one, many = models.load(str(llava_checkpoint()[0])), models.load(str(shards))
    assert close(vision_of(many)(pixels())["projected"], vision_of(one)(pixels())["projected"], 0)


def test_settings_are_those_of_the_checkpoint(llava_checkpoint):
    path, _ = llava_checkpoint()
    parts = models.load(str(path))
    assert parts.image["size"] == parts.image["crop"] == [56, 56]
    assert parts.image["shortest_edge"] == 56
    assert parts.prompt == {
        "before": "",
        "roles": {"system": "", "user": "USER: ", "assistant": "ASSISTANT: "},
        "image": "<image>\n",
        "order": "images first",
        "after_text": " ",
        "end": "",
        "generation": "ASSISTANT:",
        "image_token": "<image>",
        "image_token_id": 3,
        "bos_id": 1,
        "stop_ids": [2],
        "pad_id": 4,
    }


def test_stop_ids_of_the_generation_config_count(copy):
    (copy / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 7]}))
    assert models.load(str(copy)).prompt["stop_ids"] == [2, 7]


def test_dummy_of_a_directory_needs_no_weights(llava_checkpoint, copy):
    (copy / "model.safetensors").unlink()
    parts = models.load(str(copy), load_format="dummy")
    assert parts.spec == models.load(str(llava_checkpoint()[0])).spec
    assert parts.source["load_format"] == "dummy"
    assert torch.isfinite(vision_of(parts)(pixels())["projected"]).all()


def test_old_and_new_forms_of_the_rotary_base(copy, edit_json):
    text = json.loads((copy / "config.json").read_text())["text_config"]
    assert text["rope_parameters"]["rope_theta"] == 5000.0
    assert models.load(str(copy)).spec.decoder.rope_theta == 5000.0
    del text["rope_parameters"]
    for form, theta in (({"rope_theta": 6000.0, "rope_scaling": None}, 6000.0), ({}, 10000.0)):
        edit_json(copy / "config.json", text_config=text | form)
        assert models.load(str(copy)).spec.decoder.rope_theta == theta


REFUSED = {
    "model_type": ({"model_type": "qwen2_vl"}, "model_type qwen2_vl"),
    "original LLaVA format": ({"mm_vision_tower": "openai/clip"}, "mm_vision_tower"),
    "quantized": ({"quantization_config": {"quant_method": "bitsandbytes"}}, "quant_method bitsandbytes"),
    "strategy": ({"vision_feature_select_strategy": "full"}, "vision_feature_select_strategy"),
    "several layers": ({"vision_feature_layer": [-2, -5]}, "vision_feature_layer"),
    "no such layer": ({"vision_feature_layer": -9}, "vision_feature_layer"),
    "projector": ({"projector_hidden_act": "mish"}, "projector_hidden_act"),
    "tower": ({"vision_config": {"model_type": "siglip_vision_model"}}, "siglip_vision_model"),
    "decoder": ({"text_config": {"model_type": "gemma"}}, "gemma"),
    "long context": ({"text_config": {"rope_scaling": {"type": "linear", "factor": 2.0}}}, "linear"),
    "yarn": ({"text_config": {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}}}, "yarn"),
    "biases": ({"text_config": {"attention_bias": True}}, "attention_bias"),
    "window": ({"text_config": {"model_type": "mistral"}}, "sliding_window"),
    "not a number": ({"text_config": {"hidden_size": "64"}}, "hidden_size"),
    "grouping": (
        {"text_config": {"num_attention_heads": 4, "num_key_value_heads": 3}},
        "num_key_value_heads",
    ),
}


@pytest.mark.parametrize(("changes", "named"), REFUSED.values(), ids=REFUSED)
def test_unsupported_checkpoints_are_refused_by_name(copy, edit_json, changes, named):
    edit_json(copy / "config.json", **changes)
    with pytest.raises(UserError, match=named) as error:
        models.load(str(copy))
    assert str(error.value).count(" | ") >= 2


def test_a_mistral_whose_window_never_bites_is_a_llama(llava_checkpoint, copy, edit_json):
    text = json.loads((copy / "config.json").read_text())["text_config"]
    edit_json(copy / "config.json", text_config=text | {"model_type": "mistral", "sliding_window": None})
    assert models.load(str(copy)).spec == models.load(str(llava_checkpoint()[0])).spec

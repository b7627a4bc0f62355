"""LoRA adapters: every merged tensor is what peft's ``merge_and_unload`` makes of it in float32."""

from __future__ import annotations

import shutil

import peft
import pytest
import torch
import transformers
from lora_adapters import ATTENTION, EVERYWHERE, MLP, entries_of, equal, refusal, rename, train, weights_of
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText

from foveate.export import models


def same_tensors(ours, path, merged) -> None:
    """Compare ``ours``, ModelParts of the adapted model, with ``merged``, transformers' model."""
    truth = {name: value.detach() for name, value in merged.state_dict().items()}
    entries = entries_of(path)
    for name, entry in entries.items():
        there = next(key for key in entry.names if key in truth)
        value = ours.weights.get(name)
        assert value.dtype == torch.float32 and value.is_contiguous()
        expected = truth[there].T if entry.transposed else truth[there]
        torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")


OPTIONS = {
    "attention": {"target_modules": ATTENTION},
    "everywhere": {"target_modules": EVERYWHERE},
    "all linear": {"target_modules": "all-linear"},
    "ranks": {
        "target_modules": EVERYWHERE,
        "rank_pattern": {r"layers\.1\.self_attn\.q_proj": 2, "up_proj": 8},
        "alpha_pattern": {r".*\.0\.self_attn.*_proj": 3, "down_proj": 11},
    },
    "rslora": {"target_modules": ATTENTION, "use_rslora": True, "rank_pattern": {"q_proj": 2}},
    "dora": {"target_modules": EVERYWHERE, "use_dora": True},
    "transposed": {"target_modules": MLP, "fan_in_fan_out": True},
    "all biases": {"target_modules": [*ATTENTION, "out_proj", "qkv"], "bias": "all"},
    "own biases": {"target_modules": ["q_proj", "out_proj", "fc1", "qkv"], "bias": "lora_only"},
    "lora biases": {"target_modules": ["qkv", "linear_1", "fc1"], "lora_bias": True},
    "copies": {
        "target_modules": ATTENTION,
        "modules_to_save": ["lm_head", "linear_1", "input_layernorm", "merger"],
    },
    "embeddings": {"target_modules": ["embed_tokens", "lm_head", "q_proj"]},
    "embeddings, dora": {"target_modules": ["embed_tokens", "lm_head"], "use_dora": True},
    "tokens": {"target_modules": ATTENTION, "trainable_token_indices": [3, 5, 256]},
    "tokens of tables": {
        "target_modules": ATTENTION,
        "trainable_token_indices": {"embed_tokens": [7, 9], "lm_head": [2]},
    },
    "convolutions": {"target_modules": ["patch_embedding", "patch_embed.proj", "q_proj"]},
    "convolutions, dora": {"target_modules": ["patch_embedding", "patch_embed.proj"], "use_dora": True},
    "saved tables": {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"]},
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_merged_as_peft_merges(base, tmp_path, family, options):
    model = train(base(family), tmp_path / "adapter", **options)
    ours = models.load(str(base(family)), adapter=str(tmp_path / "adapter"))
    same_tensors(ours, base(family), model.merge_and_unload())


TIED = {
    "table": {"target_modules": ["embed_tokens", "q_proj"]},
    "head": {"target_modules": ["lm_head", "q_proj"]},
    "both": {"target_modules": ["embed_tokens", "lm_head"]},
    "together": {"target_modules": ["embed_tokens", "lm_head"], "ensure_weight_tying": True},
    "copy of the head": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
    "copy of the table": {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
    "one copy": {
        "target_modules": ["q_proj"],
        "modules_to_save": ["embed_tokens"],
        "ensure_weight_tying": True,
    },
    "tokens": {"target_modules": ["q_proj"], "trainable_token_indices": [3, 5]},
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("options", TIED.values(), ids=TIED)
def test_a_tied_head_and_its_table_are_those_of_the_model_that_was_trained(base, tmp_path, options):
    """The oracle is peft's model before its merge, which changes both tensors where one was trained.

    Its table and head are asked for every token and every direction.
    """
    train(base("llava, tied"), tmp_path / "adapter", **options)
    plain = AutoModelForImageTextToText.from_pretrained(base("llava, tied"), dtype=torch.float32).eval()
    model = peft.PeftModel.from_pretrained(plain, tmp_path / "adapter").get_base_model()
    with torch.no_grad():
        table = model.get_input_embeddings()(torch.arange(320))
        head = model.get_output_embeddings()(torch.eye(64))
    ours = models.load(str(base("llava, tied")), adapter=str(tmp_path / "adapter")).weights
    torch.testing.assert_close(ours.get("embed_tokens"), table)
    torch.testing.assert_close(ours.get("llm.lm_head.weight"), head)


FORMS = {
    "transformers 4": (
        ("model.language_model.", "language_model.model."),
        ("model.vision_tower.", "vision_tower.vision_model."),
        ("model.multi_modal_projector.", "multi_modal_projector."),
        ("lm_head.", "language_model.lm_head."),
    ),
    "without peft's prefix": (("base_model.model.", ""),),
    "state of training": (("lora_A.", "lora_A.default."), ("lora_B.", "lora_B.default.")),
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_names_of_other_versions(base, adapter, form):
    truth = weights_of(base("llava"), adapter)
    assert not equal(truth, weights_of(base("llava")))
    before = set(load_file(adapter / "adapter_model.safetensors"))

    def change(name):
        for ours, theirs in form:
            name = name.replace(ours, theirs, 1)
        return name

    rename(adapter, change)
    assert before != set(load_file(adapter / "adapter_model.safetensors"))
    assert equal(weights_of(base("llava"), adapter), truth)


@pytest.mark.filterwarnings("ignore")
def test_names_of_transformers_4_in_qwen(base, tmp_path):
    train(base("qwen2_5_vl"), tmp_path / "adapter", target_modules=EVERYWHERE)
    truth = weights_of(base("qwen2_5_vl"), tmp_path / "adapter")
    rename(
        tmp_path / "adapter",
        lambda name: name.replace("model.language_model.", "model.").replace("model.visual.", "visual."),
    )
    assert equal(weights_of(base("qwen2_5_vl"), tmp_path / "adapter"), truth)


@pytest.mark.filterwarnings("ignore")
def test_an_adapter_that_transformers_saves(base, tmp_path, monkeypatch):
    """Check an adapter beside weights without peft's own class: transformers puts the two together."""
    path = shutil.copytree(base("llava"), tmp_path / "both")
    # transformers 5.24 asks for a peft that is newer than any that was published
    monkeypatch.setattr(transformers.integrations.peft, "MIN_PEFT_VERSION", "0.18.0")
    model = AutoModelForImageTextToText.from_pretrained(path, dtype=torch.float32).eval()
    torch.manual_seed(2)
    model.add_adapter(peft.LoraConfig(target_modules=ATTENTION, init_lora_weights=False))
    model.save_pretrained(tmp_path / "adapter")
    for file in (tmp_path / "adapter").glob("adapter*"):
        shutil.copy(file, path)
    found = weights_of(base("llava"), tmp_path / "adapter")
    assert equal(weights_of(path), found)
    with torch.no_grad():
        module = AutoModelForImageTextToText.from_pretrained(path, dtype=torch.float32).model.language_model
        query = module.layers[1].self_attn.q_proj
        assert type(query).__module__.startswith("peft")
        torch.testing.assert_close(found["llm.layers.1.self_attn.q_proj.weight"], query(torch.eye(64)))


def test_an_adapter_in_an_archive(base, adapter):
    truth = weights_of(base("llava"), adapter)
    torch.save(load_file(adapter / "adapter_model.safetensors"), adapter / "adapter_model.bin")
    (adapter / "adapter_model.safetensors").unlink()
    assert equal(weights_of(base("llava"), adapter), truth)


@pytest.mark.filterwarnings("ignore")
def test_a_tensor_that_is_read_twice_is_merged_once(base, copy, tmp_path):
    """Archives are mapped: what is changed in their memory would be there the next time."""
    train(base("llava"), tmp_path / "adapter", target_modules=["embed_tokens"])
    tables = tmp_path / "adapter" / "adapter_model.safetensors"
    save_file({k: v for k, v in load_file(tables).items() if "base_layer" not in k}, tables)
    torch.save(load_file(copy / "model.safetensors"), copy / "pytorch_model.bin")
    (copy / "model.safetensors").unlink()
    weights = models.load(str(copy), adapter=str(tmp_path / "adapter")).weights
    first = weights.get("embed_tokens").clone()
    assert torch.equal(weights.get("embed_tokens"), first)


def test_an_adapter_of_another_model(base, adapter, tmp_path):
    message = refusal(base("qwen2_5_vl"), adapter=str(adapter))
    assert "does not fit the model" in message and ".fc1.weight" in message


def test_tensors_that_fit_nothing_are_named(base, adapter):
    rename(adapter, lambda name: name.replace("layers.1.self_attn.v_proj", "layers.7.self_attn.v_proj"))
    message = refusal(base("llava"), adapter=str(adapter))
    assert "layers.7.self_attn.v_proj.weight" in message


def test_layers_that_are_not_run_may_be_adapted(base, adapter):
    """The tower's last layer lies behind the one whose features are read."""
    assert any("encoder.layers.3." in name for name in load_file(adapter / "adapter_model.safetensors"))
    models.load(str(base("llava")), adapter=str(adapter))

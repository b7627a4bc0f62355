"""LoRA adapters: every merged tensor is what peft's ``merge_and_unload`` makes of it in float32."""

from __future__ import annotations

import dataclasses
import shutil

import peft
import pytest
import qwen_checkpoint
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText

from foveate.engines.errors import UserError
from foveate.export import models
from foveate.export.adapters import lora_config
from foveate.export.checkpoints.directory import Directory, Entry

ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
MLP = ["gate_proj", "up_proj", "down_proj"]
EVERYWHERE = (
    ATTENTION + MLP + ["out_proj", "fc1", "fc2", "qkv", "proj", "mlp.0", "mlp.2", "linear_1", "linear_2"]
)


def refusal(path, **options) -> str:
    with pytest.raises(UserError) as error:
        models.load(str(path), **options)
    assert str(error.value).count(" | ") == 2
    return str(error.value)


@pytest.fixture(scope="module")
def base(tmp_path_factory, llava_checkpoint):
    """``base(family, tied)`` -> directory of a checkpoint."""
    made = {"llava": llava_checkpoint()[0], "llava, tied": llava_checkpoint(tied=True)[0]}

    def get(family):
        if family not in made:
            made[family] = tmp_path_factory.mktemp("qwen")
            qwen_checkpoint.save_checkpoint(made[family])
        return made[family]

    return get


def train(path, adapter, **options) -> torch.nn.Module:
    """Save a random adapter to the checkpoint in ``path`` as peft does; its model, not merged."""
    model = AutoModelForImageTextToText.from_pretrained(path, dtype=torch.float32).eval()
    torch.manual_seed(1)
    options = {"r": 4, "lora_alpha": 6, "init_lora_weights": False} | options
    found = peft.get_peft_model(model, peft.LoraConfig(**options))
    for value in found.parameters():
        if value.requires_grad:  # magnitudes, biases and copies start as what they are in the base model
            value.data.mul_(1.1).add_(0.05 * torch.randn_like(value))
    found.save_pretrained(adapter)
    return found


def same_tensors(ours, path, merged) -> None:
    """``ours``, Parts of the adapted model, are ``merged``, transformers' model."""
    truth = {name: value.detach() for name, value in merged.state_dict().items()}
    entries = entries_of(path)
    for name, entry in entries.items():
        there = next(key for key in entry.names if key in truth)
        value = ours.weights.get(name)
        assert value.dtype == torch.float32 and value.is_contiguous()
        expected = truth[there].T if entry.transposed else truth[there]
        torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")


def entries_of(path) -> dict[str, Entry]:
    """Return the tensors that the family asks its source for."""
    seen = {}

    class Spy(Directory):
        def weights(self, entries, unread=None):
            seen.update(entries)
            return super().weights(entries, unread)

    source = Spy(path)
    models.family(source.config["model_type"]).load(source)
    return seen


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


# Files and names


@pytest.fixture
def adapter(base, tmp_path):
    """An adapter to the LLaVA checkpoint, and what the merged head is of which it changes everything."""
    options = {"target_modules": [*ATTENTION, "lm_head", "fc1", "linear_1"]}
    train(base("llava"), tmp_path / "adapter", **options)
    return tmp_path / "adapter"


def rename(adapter, change) -> None:
    tensors = load_file(adapter / "adapter_model.safetensors")
    save_file({change(name): value for name, value in tensors.items()}, adapter / "adapter_model.safetensors")


def weights_of(path, adapter=None) -> dict[str, torch.Tensor]:
    weights = models.load(str(path), adapter=adapter and str(adapter)).weights
    return {name: weights.get(name) for name in entries_of(path)}


def equal(found, truth) -> bool:
    return all(torch.equal(found[name], truth[name]) for name in truth)


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
    """Without peft's own class, and beside weights: transformers itself puts the two together again."""
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


def test_a_folder_with_nothing_but_an_adapter_finds_its_base_model(base, adapter, capsys):
    truth = weights_of(base("llava"), adapter)
    parts = models.load(str(adapter))
    assert equal({name: parts.weights.get(name) for name in truth}, truth)
    assert parts.source["model"] == str(base("llava"))
    assert parts.source["adapter"] == str(adapter)
    assert f"adapter {adapter} is merged into {base('llava')}" in capsys.readouterr().err
    assert models.load(str(adapter), load_format="dummy").source["load_format"] == "dummy"


def test_an_adapter_beside_the_weights_is_merged(base, copy, adapter):
    truth = weights_of(base("llava"), adapter)
    for file in adapter.glob("adapter*"):
        shutil.copy(file, copy)
    (copy / "checkpoint-10").mkdir()
    shutil.copy(adapter / "adapter_config.json", copy / "checkpoint-10")
    assert equal(weights_of(copy), truth)
    assert models.load(str(copy)).source["adapter"] == str(copy)
    assert "has an adapter of its own" in refusal(copy, adapter=str(adapter))


def test_settings_beside_an_adapter_stand_before_the_base_models(base, adapter, edit_json):
    (adapter / "chat_template.jinja").write_text(
        (base("llava") / "chat_template.jinja").read_text().replace(": ", "> ")
    )
    shutil.copy(base("llava") / "processor_config.json", adapter)
    edit_json(adapter / "processor_config.json", video_processor={})
    parts = models.load(str(base("llava")), adapter=str(adapter))
    assert parts.prompt["roles"]["user"] == "USER> "
    assert models.load(str(base("llava"))).prompt["roles"]["user"] == "USER: "


# What is refused


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"peft_type": "IA3"}, "peft_type IA3"),
        ({"peft_type": None}, "peft_type None"),
        *(({key: {"r": 1}}, key) for key in lora_config.REFUSED),
        *(
            ({"init_lora_weights": start}, "init_lora_weights")
            for start in ("pissa", "pissa_niter_4", "olora", "loftq")
        ),
        ({"bias": "some"}, "bias some"),
        ({"r": "many"}, "whole number"),
        ({"r": 10**400}, "whole number"),
        ({"lora_alpha": 10**400}, "damaged"),
        ({"base_model_name_or_path": 5}, "base_model_name_or_path is 5, expected a text"),
        ({"rank_pattern": {"(": 3}}, "damaged"),
        ({"alpha_pattern": {"q_proj": "x"}}, "damaged"),
        ({"r": 2}, r"expected \[2, 64\]"),
        ({"use_dora": True}, "has no lora_magnitude_vector"),
        ({"modules_to_save": ["embed_tokens"]}, "lacks modules"),
    ],
)
def test_adapters_that_would_come_out_wrong_are_refused_by_name(base, adapter, edit_json, changes, named):
    edit_json(adapter / "adapter_config.json", **changes)
    with pytest.raises(UserError, match=named) as error:
        models.load(str(base("llava")), adapter=str(adapter))
    assert str(error.value).count(" | ") == 2


def test_keys_that_are_not_known_are_named(base, adapter, edit_json, capsys):
    edit_json(adapter / "adapter_config.json", use_of_tomorrow=True, other_of_tomorrow=False)
    models.load(str(base("llava")), adapter=str(adapter))
    said = capsys.readouterr().err
    assert "use_of_tomorrow" in said and "other_of_tomorrow" not in said


def test_every_key_of_peft_is_in_the_table():
    keys = {each.name for each in dataclasses.fields(peft.LoraConfig)}
    tables = [set(lora_config.USED), set(lora_config.IRRELEVANT), set(lora_config.REFUSED)]
    assert keys - set.union(*tables) == set()
    assert sum(map(len, tables)) == len(set.union(*tables))  # each in one of them


def test_quantized_base_models(base, copy, adapter, edit_json):
    edit_json(copy / "config.json", quantization_config={"quant_method": "awq", "bits": 4})
    assert "quantized weights" in refusal(copy, adapter=str(adapter))


def test_remnants_of_the_original_llava(base, adapter):
    (adapter / "non_lora_trainables.bin").write_bytes(b"")
    assert "non_lora_trainables.bin" in refusal(base("llava"), adapter=str(adapter))


def test_several_adapters(base, copy, adapter, tmp_path):
    for name in ("one", "two"):
        shutil.copytree(adapter, tmp_path / "several" / name)
    message = refusal(base("llava"), adapter=str(tmp_path / "several"))
    assert "one, two" in message and f"--adapter {tmp_path / 'several' / 'one'}" in message
    shutil.copytree(adapter, copy, dirs_exist_ok=True)
    shutil.copytree(adapter, copy / "other")
    assert "others in other" in refusal(copy)
    rename(adapter, lambda name: name.replace("lora_A.", "lora_A.red.").replace("lora_B.", "lora_B.blue."))
    assert "blue, red" in refusal(base("llava"), adapter=str(adapter))


def test_an_adapter_to_an_adapter(base, adapter, tmp_path, edit_json):
    shutil.copytree(adapter, tmp_path / "upon")
    edit_json(tmp_path / "upon" / "adapter_config.json", base_model_name_or_path=str(adapter))
    assert "is or has an adapter" in refusal(tmp_path / "upon")
    edit_json(adapter / "adapter_config.json", base_model_name_or_path=str(tmp_path / "upon"))
    assert "is or has an adapter" in refusal(tmp_path / "upon"), "each is the other's base model"
    edit_json(adapter / "adapter_config.json", base_model_name_or_path=str(adapter))
    assert "is the adapter itself" in refusal(adapter)


@pytest.mark.parametrize("name", [None, "/home/someone/llava", "no-such-place"])
def test_a_base_model_that_is_not_here(adapter, edit_json, name):
    edit_json(adapter / "adapter_config.json", base_model_name_or_path=name)
    message = refusal(adapter)
    assert "--model" in message and (name or "empty") in message


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


@pytest.mark.parametrize(
    "harm", ["no weights", "no config", "config cut", "weights cut", "half a pair", "shape", "nan"]
)
def test_damaged_adapters(base, adapter, harm):
    weights, config = adapter / "adapter_model.safetensors", adapter / "adapter_config.json"
    tensors = load_file(weights)
    name = next(name for name in tensors if "q_proj.lora_B" in name)
    if harm == "no weights":
        weights.unlink()
    elif harm == "no config":
        config.unlink()
    elif harm == "config cut":
        config.write_text(config.read_text()[:40])
    elif harm == "weights cut":
        weights.write_bytes(weights.read_bytes()[:-100])
    else:
        value = tensors.pop(name)
        changed = {"shape": value[:-1], "nan": value * torch.nan}
        save_file(tensors | ({name: changed[harm]} if harm in changed else {}), weights)
    with pytest.raises(UserError) as error:
        weights_of(base("llava"), adapter)
    assert str(error.value).count(" | ") == 2
    assert str(adapter) in str(error.value)


def test_random_weights_take_no_adapter(base, adapter):
    assert "random weights take no adapter" in refusal(
        base("llava"), adapter=str(adapter), load_format="dummy"
    )

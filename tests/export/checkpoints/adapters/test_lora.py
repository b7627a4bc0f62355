"""Adapters as files: where they lie, which base model they name, and those that are refused."""

from __future__ import annotations

import shutil

import pytest
import torch
from lora_adapters import equal, refusal, rename, weights_of
from safetensors.torch import load_file, save_file

from foveate.engines.errors import UserError
from foveate.export import models


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

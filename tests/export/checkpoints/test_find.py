"""Sources: what users can get wrong about a checkpoint, and its tensors as they are read."""

from __future__ import annotations

import json
import os

import pytest
import torch
from safetensors.torch import load_file, save_file

from foveate.engines.errors import UserError
from foveate.export import models
from foveate.export.checkpoints.directory import Directory, Entry
from foveate.export.checkpoints.random_weights import byte_tokenizer


def refusal(path, *args, **options) -> str:
    """The message of the UserError, which has what happened, what was found and what to do."""
    with pytest.raises(UserError) as error:
        models.load(str(path), *args, **options)
    assert str(error.value).count(" | ") >= 2
    return str(error.value)


def test_unknown_models_are_answered_with_the_nearest_name():
    message = refusal("lava-1.5-7b")
    assert "did you mean llava-1.5-7b?" in message
    assert "llava-1.5-13b" in message
    assert "org/name" in message


@pytest.mark.parametrize("path", ["./nothing", "/no/such/place", "~/nothing-here", "a/b/c"])
def test_a_path_that_is_not_there(path):
    assert "no directory" in refusal(path)


def test_a_file_in_place_of_a_directory(copy):
    assert "is a file" in refusal(copy / "model.safetensors")


def test_a_directory_without_a_config(tmp_path):
    assert "config.json" in refusal(tmp_path)


def test_a_config_that_is_no_json(copy):
    (copy / "config.json").write_text("{")
    assert "config.json is damaged" in refusal(copy)


def test_a_config_of_another_family(copy, edit_json):
    edit_json(copy / "config.json", model_type="blip-2")
    message = refusal(copy)
    assert "blip-2" in message
    assert "llava" in message


def test_an_unknown_load_format(copy):
    assert "did you mean dummy?" in refusal(copy, load_format="dumy")


def test_a_missing_shard_is_named(shards):
    files = sorted(shards.glob("*.safetensors"))
    files[2].unlink()
    message = refusal(shards)
    assert files[2].name in message
    assert f"1 of {len(files)}" in message


@pytest.mark.parametrize("left", [0, 5, 100, 0.5, -1])
def test_a_shard_cut_short_is_named(shards, left):
    path = sorted(shards.glob("*.safetensors"))[2]
    size = path.stat().st_size
    keep = size + left if left < 0 else int(left * size) if isinstance(left, float) else left
    os.truncate(path, keep)
    message = refusal(shards)
    assert path.name in message
    assert f"{keep} bytes" in message


def test_a_pointer_of_git_lfs_is_told_from_the_file(copy):
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 14\n"
    (copy / "model.safetensors").write_bytes(pointer)
    assert "Git LFS" in refusal(copy)


@pytest.mark.parametrize("header", [b"\x10" + bytes(7) + b"this is not json", b"\x02" + bytes(7) + b"[]"])
def test_a_file_of_another_format(copy, header):
    (copy / "model.safetensors").write_bytes(header)
    assert "not in safetensors format" in refusal(copy)


def test_no_weights_at_all(copy):
    (copy / "model.safetensors").unlink()
    assert "--load-format dummy" in refusal(copy)


def test_wrong_shapes_are_refused_before_anything_is_read(copy, edit_json):
    text = json.loads((copy / "config.json").read_text())["text_config"]
    edit_json(copy / "config.json", text_config=text | {"intermediate_size": 128})
    message = refusal(copy)
    assert "is [96, 64], expected [128, 64]" in message
    assert "and 3 more" in message  # three matrices in two layers, three of them shown


def test_missing_tensors_are_named(copy):
    tensors = load_file(copy / "model.safetensors")
    del tensors["multi_modal_projector.linear_1.bias"]
    save_file(tensors, copy / "model.safetensors")
    assert "multi_modal_projector.linear_1.bias" in refusal(copy)


def test_weights_that_are_quantized_already(copy):
    tensors = load_file(copy / "model.safetensors")
    name = "language_model.model.layers.0.mlp.up_proj.weight"
    tensors[name] = tensors[name].to(torch.int8)
    save_file(tensors, copy / "model.safetensors")
    assert "I8" in refusal(copy)


@pytest.mark.parametrize("name", ["tokenizer.json", "processor_config.json"])
def test_a_missing_settings_file_is_named(copy, name):
    (copy / name).unlink()
    assert name in refusal(copy)


def test_a_tokenizer_of_another_model(copy):
    (copy / "tokenizer.json").write_bytes(byte_tokenizer(259, {"<s>": 0, "</s>": 1, "<pad>": 2}))
    (copy / "config.json").write_text((copy / "config.json").read_text().replace('index": 3', 'index": 300'))
    assert "no token 300" in refusal(copy)


def test_a_damaged_tokenizer(copy):
    (copy / "tokenizer.json").write_text("{}")
    assert "tokenizer.json" in refusal(copy)


# The format before safetensors


def test_pickled_weights_are_read_where_there_are_no_others(copy):
    tensors = load_file(copy / "model.safetensors")
    truth = models.load(str(copy)).weights.get("llm.layers.1.mlp.down_proj.weight")
    (copy / "model.safetensors").unlink()
    torch.save(tensors, copy / "pytorch_model.bin")
    assert torch.equal(models.load(str(copy)).weights.get("llm.layers.1.mlp.down_proj.weight"), truth)
    os.truncate(copy / "pytorch_model.bin", 5000)
    assert "pytorch_model.bin is damaged" in refusal(copy)


def test_pickled_weights_run_no_code(copy):
    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(copy / "exploded"),)

    (copy / "model.safetensors").unlink()
    torch.save({"a": Bomb()}, copy / "pytorch_model.bin")
    assert "damaged" in refusal(copy)
    assert not (copy / "exploded").exists()


# Reading


def test_tensors_come_as_the_modules_hold_them(tmp_path):
    stored = {"a.weight": torch.randn(3, 5), "b": torch.randn(4).bfloat16(), "c": torch.randn(2).half()}
    save_file(stored, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{}")
    entries = {
        "x.weight": Entry((5, 3), ("other.weight", "a.weight"), transposed=True),
        "b": Entry((4,), ("b",)),
        "c": Entry((2,), ("c",)),
    }
    weights = Directory(tmp_path).weights(entries)
    assert torch.equal(weights.get("x.weight"), stored["a.weight"].T)
    assert weights.get("x.weight").is_contiguous()
    assert torch.equal(weights.get("b"), stored["b"].float())
    assert weights.get("c").dtype == torch.float16
    assert "x.weight" in weights
    assert "a.weight" not in weights


def test_a_source_names_the_tensors_that_it_stores(copy):
    assert Directory(copy).names() == set(load_file(copy / "model.safetensors"))

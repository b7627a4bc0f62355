"""Weights in the forms that people save: shards, archives, names with a wrapper's prefix.

Tensors that nothing reads are named, and NaN and infinity are refused.
"""

from __future__ import annotations

import json

import numpy as np
import pytest
import qwen_checkpoint
import torch
from safetensors.torch import load_file, save_file

from foveate.engines.errors import UserError
from foveate.export import methods, models
from foveate.export.build import build
from foveate.export.checkpoints.directory import Directory, Entry

NAMES = ("embed_tokens", "llm.layers.1.mlp.down_proj.weight", "vision_encoder.projector.linear_1.bias")
NORM = "language_model.model.layers.1.input_layernorm.weight"


def refusal(path, **options) -> str:
    with pytest.raises(UserError) as error:
        models.load(str(path), **options)
    assert str(error.value).count(" | ") == 2
    return str(error.value)


@pytest.fixture
def same(llava_checkpoint):
    """``same(path)``: the checkpoint there has the weights of the one that it was copied from."""
    truth = models.load(str(llava_checkpoint()[0])).weights

    def check(path) -> None:
        weights = models.load(str(path)).weights
        for name in NAMES:
            assert torch.equal(weights.get(name).float(), truth.get(name))

    return check


@pytest.fixture
def rewrite(copy):
    """``rewrite(change)``: the tensors of ``copy`` are what ``change`` makes of them."""

    def write(change) -> None:
        tensors = load_file(copy / "model.safetensors")
        found = change(tensors)
        save_file(tensors if found is None else found, copy / "model.safetensors")

    return write


# Archives


def test_archives_in_shards(copy, same, shard_pickled):
    shard_pickled(copy)
    same(copy)
    lost = sorted(copy.glob("*.bin"))[1]
    lost.unlink()
    message = refusal(copy)
    assert lost.name in message and "1 of 3" in message


@pytest.mark.parametrize("places", [None, ["a"], {"a": 1}])
def test_an_index_that_is_none(copy, shard_pickled, places):
    shard_pickled(copy)
    (copy / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": places}))
    assert "without a weight_map" in refusal(copy)


def test_an_index_that_leaves_a_shard_out(copy, shard_pickled):
    shard_pickled(copy)
    index = json.loads((copy / "pytorch_model.bin.index.json").read_text())
    places = {name: file for name, file in index["weight_map"].items() if "00002" not in file}
    (copy / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": places}))
    assert "tensors are missing" in refusal(copy)


def test_an_archive_of_before_zip_files(copy, same):
    tensors = load_file(copy / "model.safetensors")
    (copy / "model.safetensors").unlink()
    torch.save(tensors, copy / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    same(copy)


def test_a_training_state_is_told_from_weights(copy):
    tensors = load_file(copy / "model.safetensors")
    (copy / "model.safetensors").unlink()
    torch.save({"state_dict": tensors, "epoch": 3}, copy / "pytorch_model.bin")
    message = refusal(copy)
    assert "state_dict" in message and "save_pretrained" in message
    torch.save([1, 2], copy / "pytorch_model.bin")
    assert "archive of a list" in refusal(copy)


def test_one_file_stands_before_an_index_as_in_transformers(llava_checkpoint, copy, same):
    """A leftover index of another save is not what transformers reads."""
    llava_checkpoint()[1].save_pretrained(copy / "shards", max_shard_size="200KB")
    for path in (copy / "shards").glob("model*"):
        path.rename(copy / path.name)
    wrong = json.loads((copy / "model.safetensors.index.json").read_text())["weight_map"].popitem()[1]
    (copy / wrong).unlink()
    same(copy)


# Names and forms that are nearly right


@pytest.mark.parametrize("start", ["module.", "_orig_mod.", "base_model.model.", "module._orig_mod."])
def test_prefixes_of_wrappers_are_removed(copy, same, rewrite, start):
    rewrite(lambda tensors: {start + name: value for name, value in tensors.items()})
    same(copy)
    assert NORM in Directory(copy).names()


def test_a_wrapper_inside_is_named(copy, rewrite):
    rewrite(lambda t: {n.replace("language_model.", "language_model._orig_mod."): v for n, v in t.items()})
    message = refusal(copy)
    assert "torch.compile left _orig_mod." in message and "copy or download" not in message


def test_an_adapter_that_is_not_merged_is_named(copy, rewrite):
    def change(tensors):
        for name in [n for n in tensors if "q_proj.weight" in n]:
            tensors[name.replace("q_proj", "q_proj.base_layer")] = tensors.pop(name)

    rewrite(change)
    message = refusal(copy)
    assert "adapter that is not merged" in message and "merge_and_unload" in message


@pytest.mark.parametrize("form", ["safetensors", "archive"])
def test_float64(copy, same, rewrite, form):
    rewrite(lambda tensors: {name: value.double() for name, value in tensors.items()})
    if form == "archive":
        torch.save(load_file(copy / "model.safetensors"), copy / "pytorch_model.bin")
        (copy / "model.safetensors").unlink()
    same(copy)
    assert models.load(str(copy)).weights.get("embed_tokens").dtype == torch.float32


@pytest.mark.parametrize("coding", ["utf-8-sig", "utf-16"])
def test_json_as_windows_saves_it(copy, same, coding):
    text = (copy / "config.json").read_text()
    (copy / "config.json").write_bytes(text.encode(coding))
    same(copy)


# What nothing reads


def test_every_tensor_of_a_checkpoint_is_read_or_left_out_for_a_reason(
    copy, rewrite, capsys, clip_checkpoint
):
    rewrite(lambda t: t | {"model.rotary_emb.inv_freq": torch.ones(4), "vision.position_ids": torch.ones(4)})
    parts = models.load(str(copy), clip=str(clip_checkpoint(2)[0]))
    parts.vision(("clip_image",))
    assert "does not read" not in capsys.readouterr().err


def test_every_tensor_of_the_other_families_is_read(tmp_path, save_checkpoint, capsys):
    save_checkpoint(tmp_path / "tiles", tiles=True)
    qwen_checkpoint.save_checkpoint(tmp_path / "windows")
    for name in ("tiles", "windows"):
        models.load(str(tmp_path / name))
    assert "does not read" not in capsys.readouterr().err


@pytest.mark.parametrize(
    "name", ["image_newline", "language_model.model.layers.0.self_attn.q_norm.weight", "value_head.weight"]
)
def test_tensors_that_nothing_reads_are_named(copy, rewrite, capsys, name):
    rewrite(lambda tensors: tensors | {name: torch.ones(4)})
    models.load(str(copy))
    said = capsys.readouterr().err
    assert "holds 1 tensors that this model does not read" in said and name in said


# Not numbers


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_are_found_when_a_tensor_is_read(tmp_path, dtype, value):
    tensors = {"a": torch.ones(3, 5, dtype=dtype), "b": torch.ones(4, dtype=dtype)}
    tensors["a"][1, 2] = value
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{}")
    weights = Directory(tmp_path).weights({"a": Entry((5, 3), ("a",), True), "b": Entry((4,), ("b",))})
    assert weights.get("b").sum() == 4
    with pytest.raises(UserError, match=r"a holds NaN or infinity \| 1 of 15 values in model.safetensors"):
        weights.get("a")


def test_a_number_beyond_float32_is_found(tmp_path):
    save_file({"a": torch.full((3,), 1e300, dtype=torch.float64)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match="NaN or infinity"):
        Directory(tmp_path).weights({"a": Entry((3,), ("a",))}).get("a")


def test_a_build_leaves_nothing_of_a_checkpoint_with_nan(copy, rewrite, tmp_path):
    def change(tensors):
        tensors[NORM][3] = np.nan

    rewrite(change)
    with pytest.raises(UserError, match=NORM):
        build(models.load(str(copy)), methods.load("none"), tmp_path / "out" / "b", precision="fp32")
    assert [path.name for path in (tmp_path / "out").iterdir()] == [".b.lock"]

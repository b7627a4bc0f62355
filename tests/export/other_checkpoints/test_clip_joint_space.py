"""The joint space of a tower's CLIP checkpoint against transformers' own, and checkpoints that do not fit."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from clip_runs import close, pixels, vision_of

from foveate.engines.errors import UserError
from foveate.export import methods, models
from foveate.export.checkpoints.module_weights import fill
from foveate.export.graphs.assemble import with_files_for
from foveate.export.networks.clip_vision import TAPS


@pytest.mark.parametrize("eos", [2, 299])
def test_joint_space_equals_transformers(llava_checkpoint, clip_checkpoint, eos):
    """Texts, and patches in place of the class token, have the embeddings that CLIP gives them."""
    path, _ = llava_checkpoint()
    clip_path, clip = clip_checkpoint(eos)
    parts = models.load(str(path), clip=str(clip_path))
    ids = torch.randint(0, 297, (3, 16), generator=torch.Generator().manual_seed(2))
    ids[0, 4:] = 299  # padded with the end token
    ids[1, 15] = 299
    ids[2, 7], ids[2, 9] = 299, 299  # text behind the first end does not count
    text = fill(parts.text_encoder, parts.weights, "text_encoder.").eval()
    answer = vision_of(parts, ("clip_image", "features"))(pixels())
    with torch.no_grad():
        truth = clip.get_text_features(input_ids=ids).pooler_output
        assert close(text(ids), truth[None])
        patches = clip.visual_projection(clip.vision_model.post_layernorm(answer["features"]))
    assert close(answer["clip_image"], patches)
    assert parts.spec.vision.joint_size == 40
    assert parts.open_clip().files["clip_tokenizer.json"] == clip_path / "tokenizer.json"


def test_clip_beside_the_checkpoint_is_found(llava_checkpoint, clip_checkpoint, tmp_path):
    path = shutil.copytree(llava_checkpoint()[0], tmp_path / "copy")
    assert "clip_image" not in models.load(str(path)).spec.taps
    shutil.copytree(clip_checkpoint(2)[0], path / "clip")
    parts = models.load(str(path))
    assert parts.spec.taps == ("layers", *TAPS)
    assert "clip_tokenizer.json" not in parts.files  # nobody has asked for the joint space yet
    for name, reads in (("sppruner", False), ("trim", True)):
        opened = with_files_for(parts, methods.load(name))
        assert ("clip_tokenizer.json" in opened.files) == reads
    assert opened.files["clip_tokenizer.json"] == path / "clip" / "tokenizer.json"
    assert "clip_tokenizer.json" not in parts.files


def test_a_clip_of_another_tower_is_refused(clip_checkpoint):
    with pytest.raises(UserError, match=r"hidden_size is 64, expected 1024"):
        models.load("llava-1.5-7b", load_format="dummy", clip=str(clip_checkpoint(2)[0]))


@pytest.mark.parametrize("key", ["num_hidden_layers", "hidden_size", "vocab_size", "projection_dim"])
def test_sizes_that_no_clip_has_are_refused(llava_checkpoint, clip_checkpoint, tmp_path, key):
    clip = shutil.copytree(clip_checkpoint(2)[0], tmp_path / "clip")
    values = json.loads((clip / "config.json").read_text())
    values[key] = values["text_config"][key] = 10**30
    (clip / "config.json").write_text(json.dumps(values))
    with pytest.raises(UserError, match=f"CLIP.*{key} is not supported .*expected at most"):
        models.load(str(llava_checkpoint()[0]), clip=str(clip))


def test_checkpoints_that_are_no_clip_are_refused(llava_checkpoint):
    path, _ = llava_checkpoint()
    with pytest.raises(UserError, match="no CLIP checkpoint"):
        models.load(str(path), clip=str(path))

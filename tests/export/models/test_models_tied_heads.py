"""Tied and untied heads: whatever config and files say, table and head are those that transformers loads."""

from __future__ import annotations

import json
import shutil

import pytest
import qwen_checkpoint
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText

from foveate.engines.errors import UserError
from foveate.export import models

FAMILIES = ("llava", "llava_next", "qwen2_5_vl", "qwen2_5_vl, flat")
HEAD, TABLE = "lm_head.weight", "embed_tokens.weight"
STORED = ("equal", "different", "head missing", "table missing")


@pytest.fixture(scope="module", params=FAMILIES)
def untied(request, tmp_path_factory, save_checkpoint, llava_checkpoint):
    """A checkpoint that does not tie; the family's name."""
    path = tmp_path_factory.mktemp("untied")
    if request.param == "llava":
        shutil.copytree(llava_checkpoint()[0], path, dirs_exist_ok=True)
    elif request.param == "llava_next":
        save_checkpoint(path, tiles=True)
    else:
        qwen_checkpoint.save_checkpoint(path)
    return path, request.param


@pytest.fixture
def changed(untied, tmp_path):
    """``changed(outer, inner, stored)`` -> directory of the same with other flags and tensors."""

    def make(outer, inner, stored):
        path = shutil.copytree(untied[0], tmp_path / "changed")
        config = json.loads((path / "config.json").read_text())
        text = config["text_config"]
        if untied[1].endswith("flat"):
            config = {**config, **text, "model_type": config["model_type"]}
            del config["text_config"]
            text = {}  # there is but one place
        for values, flag in ((text, inner), (config, outer)):
            values.pop("tie_word_embeddings", None)
            values |= {} if flag is None else {"tie_word_embeddings": flag}
        (path / "config.json").write_text(json.dumps(config))
        tensors = load_file(path / "model.safetensors")
        head, table = (next(name for name in tensors if name.endswith(end)) for end in (HEAD, TABLE))
        if stored == "equal":
            tensors[head] = tensors[table].clone()
        elif stored != "different":
            del tensors[head if stored == "head missing" else table]
        save_file(tensors, path / "model.safetensors")
        return path

    return make


@pytest.mark.parametrize("stored", STORED)
@pytest.mark.parametrize("inner", [None, False, True], ids="inner {}".format)
@pytest.mark.parametrize("outer", [None, False, True], ids="outer {}".format)
def test_table_and_head_are_those_that_transformers_loads(changed, outer, inner, stored):
    path = changed(outer, inner, stored)
    theirs, told = AutoModelForImageTextToText.from_pretrained(path, output_loading_info=True)
    if told["missing_keys"]:  # transformers makes up a random one
        with pytest.raises(UserError, match=f"tensors are missing .*{HEAD if 'head' in stored else TABLE}"):
            models.load(str(path))
        return
    weights = models.load(str(path)).weights
    assert torch.equal(weights.get("llm.lm_head.weight"), theirs.lm_head.weight.T)
    assert torch.equal(weights.get("embed_tokens"), theirs.get_input_embeddings().weight)


def test_the_cases_that_were_wrong_are_among_them(changed):
    """vllm-project/vllm#51063: the config says tied, and a merged LoRA left a head of its own."""
    weights = models.load(str(changed(True, None, "different"))).weights
    assert not torch.equal(weights.get("llm.lm_head.weight"), weights.get("embed_tokens").T)

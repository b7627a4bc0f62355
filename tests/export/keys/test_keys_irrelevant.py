"""Keys that the tables call irrelevant: transformers computes the same with other values of them."""

from __future__ import annotations

import json
import shutil

import pytest
import qwen_checkpoint
import torch
from transformers import AutoModelForImageTextToText, AutoTokenizer

from foveate.engines.errors import UserError
from foveate.export import models
from foveate.export.keys import config_keys, processor_keys

TOKENIZER = {
    "add_bos_token": True,
    "add_eos_token": True,
    "add_prefix_space": True,
    "legacy": True,
    "sp_model_kwargs": {"enable_sampling": True},
    "do_lower_case": True,
    "trim_offsets": False,
    "errors": "ignore",
    "normalize": True,
    "vocab_size": 7,
    "add_dummy_prefix": True,
    "model_max_length": 7,
    "padding_side": "left",
    "truncation_side": "left",
    "split_special_tokens": True,
    "use_default_system_prompt": True,
    "backend": "python",
}
TEXT = "Où est-il ? It is n't HERE , isn 't it  ."


@pytest.fixture(scope="module")
def qwen(tmp_path_factory):
    path = tmp_path_factory.mktemp("qwen")
    model = qwen_checkpoint.save_checkpoint(path)
    (path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "Qwen2Tokenizer"}))
    return path, model


@pytest.fixture(params=["llava", "qwen"])
def checkpoint(request, llava_checkpoint, qwen, tmp_path):
    path = llava_checkpoint()[0] if request.param == "llava" else qwen[0]
    return shutil.copytree(path, tmp_path / "checkpoint")


def tokens_and_text(path):
    tokenizer = AutoTokenizer.from_pretrained(path)
    ids = tokenizer(TEXT)["input_ids"]
    return ids, tokenizer.decode(ids)


@pytest.mark.parametrize("key", TOKENIZER)
def test_keys_of_the_tokenizer(checkpoint, edit_json, key):
    family = json.loads((checkpoint / "config.json").read_text())["model_type"]
    table = processor_keys.tables(models.family(family).KEYS)[("tokenizer_config.json",)]
    if table[key].refuses(TOKENIZER[key]):
        pytest.skip("refused for this family")
    assert table[key].status == "irrelevant"
    before = tokens_and_text(checkpoint)
    edit_json(checkpoint / "tokenizer_config.json", **{key: TOKENIZER[key]})
    assert tokens_and_text(checkpoint) == before


def test_a_space_in_front_is_refused_where_qwens_tokenizer_puts_it(qwen, tmp_path, edit_json):
    path = shutil.copytree(qwen[0], tmp_path / "checkpoint")
    before = tokens_and_text(path)
    edit_json(path / "tokenizer_config.json", add_prefix_space=True)
    assert tokens_and_text(path) != before
    with pytest.raises(UserError, match=r"add_prefix_space in tokenizer_config\.json is not supported"):
        models.load(str(path))


def test_answers_of_bpe_tokenizers_are_not_tidied_up(checkpoint, edit_json):
    before = tokens_and_text(checkpoint)
    edit_json(checkpoint / "tokenizer_config.json", clean_up_tokenization_spaces=True)
    assert tokens_and_text(checkpoint) == before


CONFIGS = {
    "llava": {
        (): {"image_seq_length": 9, "vocab_size": 9, "ignore_index": 7, "use_cache": False, "dtype": None},
        ("text_config",): {
            "attention_dropout": 0.5,
            "initializer_range": 0.9,
            "pretraining_tp": 2,
            "sliding_window": 2,
            "use_sliding_window": True,
            "max_window_layers": 0,
            "layer_types": ["sliding_attention", "sliding_attention"],
            "bos_token_id": 9,
            "architectures": ["Other"],
        },
        ("vision_config",): {"attention_dropout": 0.5, "projection_dim": 9, "vocab_size": 9},
    },
    "qwen": {
        (): {"video_token_id": 9},
        ("text_config",): {
            "attention_dropout": 0.5,
            "sliding_window": 2,
            "max_window_layers": 0,
            "attention_bias": False,
            "mlp_bias": True,
        },
        ("vision_config",): {"spatial_patch_size": 3},
    },
}


def answer(path, ids):
    torch.manual_seed(0)
    with torch.no_grad():
        return AutoModelForImageTextToText.from_pretrained(path).eval()(input_ids=ids).logits


@pytest.mark.parametrize("family", CONFIGS)
def test_keys_of_the_config(llava_checkpoint, qwen, tmp_path, family):
    made = llava_checkpoint()[0] if family == "llava" else qwen[0]
    path = shutil.copytree(made, tmp_path / "checkpoint")
    ids = torch.randint(10, 300, (1, 12), generator=torch.Generator().manual_seed(0))
    before, config = answer(path, ids), json.loads((path / "config.json").read_text())
    tables = {
        (): models.family(config["model_type"]).KEYS.top,
        ("text_config",): config_keys.TEXT[config["text_config"]["model_type"]],
        ("vision_config",): models.family(config["model_type"]).KEYS.vision,
    }
    for where, values in CONFIGS[family].items():
        for key in values:
            assert tables[where][key].status == "irrelevant" or key == "video_token_id"
        (config[where[0]] if where else config).update(values)
    (path / "config.json").write_text(json.dumps(config))
    assert torch.equal(answer(path, ids), before)

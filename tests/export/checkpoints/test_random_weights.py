"""Dummies: random weights of the true size, tokenizers of the true vocabulary."""

from __future__ import annotations

import pytest
import torch
from tokenizers import Tokenizer

from foveate.export import models
from foveate.export.checkpoints.directory import Entry
from foveate.export.checkpoints.random_weights import DummyWeights, byte_tokenizer


def test_dummy_tensors_differ_and_do_not_depend_on_the_order():
    shapes = {
        f"llm.layers.{i}.mlp.{name}.weight": (64, 64) for i in range(3) for name in ("up_proj", "down_proj")
    }
    entries = {name: Entry(shape, (name,), transposed=True) for name, shape in shapes.items()}
    forth, back = DummyWeights(entries), DummyWeights(dict(reversed(entries.items())))
    values = {name: forth.get(name) for name in entries}
    assert len({value.numpy().tobytes() for value in values.values()}) == len(values)
    assert all(torch.equal(back.get(name), value) for name, value in reversed(values.items()))


def test_dummy_scales_are_those_of_trained_models():
    weights = models.load("llava-1.5-7b", load_format="dummy").weights
    for name, mean, deviation in (
        ("llm.layers.7.self_attn.q_proj.weight", 0, 4096**-0.5),
        ("llm.layers.7.input_layernorm.weight", 1, 0.1),
        ("vision_encoder.tower.layers.3.self_attn.q_proj.bias", 0, 0.02),
        ("vision_encoder.tower.embeddings.patch_embedding.weight", 0, (3 * 14 * 14) ** -0.5),
        ("embed_tokens", 0, 4096**-0.5),
    ):
        value = weights.get(name)
        assert abs(value.mean() - mean) < 4 * deviation / value.numel() ** 0.5
        assert 0.9 < value.std() / deviation < 1.1


def test_dummy_tokenizers_take_any_text():
    special = {"<unk>": 0, "<s>": 1, "</s>": 2, "<image>": 32000}
    made = Tokenizer.from_str(byte_tokenizer(32064, special, begin="<s>").decode())
    assert made.get_vocab_size() == 32064
    ids = made.encode("Où? 猫").ids
    assert ids[0] == 1
    assert made.decode(ids, skip_special_tokens=True) == "Où? 猫"
    assert all(made.id_to_token(i) is not None for i in range(32064))
    with pytest.raises(ValueError, match="too small"):
        byte_tokenizer(257, special)

"""The LLaVA family: tiny models, true sizes, configs and checkpoints as transformers writes them."""

from __future__ import annotations

import pytest
import torch

from foveate.export import models
from foveate.export.models import llava
from foveate.export.sources import fill


def test_tiny_runs_and_is_the_same_every_time():
    pixels = torch.randn(1, 3, 56, 56, generator=torch.Generator().manual_seed(0))
    answers = []
    for _ in range(2):
        parts = llava.tiny()
        vision = fill(parts.vision(("clip_image",)), parts.weights, "vision_encoder.")
        answers.append(vision(pixels))
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

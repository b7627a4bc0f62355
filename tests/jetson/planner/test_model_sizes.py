"""Sizes of models: by hand, by their bundles, and by the encoders themselves."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from foveate.export.networks.qwen_vision_spec import WindowSpec
from foveate.export.spec import ClipVisionSpec
from foveate.jetson.planner import model_sizes
from foveate.runtime.bundle.manifest import PrecisionInfo

ROOT = Path(__file__).parents[3]


def test_a_schedule_is_that_of_the_bundle():
    """Depths other than 32 move the cuts that go by share, and only those."""
    assert model_sizes.model("llava-1.5-7b", "fastv").schedule(64) == ((2, 576), (30, 64))
    assert [layers for layers, _ in model_sizes.model("llava-1.5-13b", "pyramiddrop").schedule(64)] == [
        10
    ] * 4
    assert [layers for layers, _ in model_sizes.model("llava-1.5-13b", "fastv").schedule(64)] == [2, 38]
    assert model_sizes.model("llava-1.5-7b", "tome").schedule(64) == ((32, 64),)
    assert model_sizes.model("llava-1.5-7b").schedule(None) == ((32, 576),)


def test_sizes_by_hand():
    m = model_sizes.model("llava-1.5-7b", precision="fp16")
    assert m.layer_bytes == 2 * 32 * (4 * 4096**2 + 3 * 4096 * 11008)
    assert m.head_bytes == 2 * 32064 * 4096
    assert m.vision_bytes == 2 * (23 * (4 * 1024**2 + 2 * 1024 * 4096) + 1024 * 4096 + 4096**2)
    q = model_sizes.model("qwen2.5-vl-7b")
    assert q.patches == 4 * 391
    assert q.layer_bytes == round(28 * 3584 * (2 * (28 + 4) * 128 + 3 * 18944) * (0.5 + 2 / 128))


def test_images_in_tiles():
    """An image of 640 x 480 in LLaVA-NeXT is a tile and four more, and a newline behind each row.

    Padding of the tiles is not read.
    """
    m = model_sizes.model("llava-v1.6-mistral-7b")
    assert m.manifest.num_visual_tokens == 576 + 36 * (48 + 1)
    assert m.vision_flops == 5 * model_sizes.model("llava-1.5-7b").vision_flops
    assert model_sizes.model("llava-v1.6-mistral-7b", visual_tokens=1152).manifest.num_visual_tokens == 1152


def test_an_encoder_tells_its_sizes():
    """Sizes of the published towers are the table's, however written: a bundle is planned as its model."""
    table = json.loads((ROOT / "jetson" / "data" / "models.json").read_text())["models"]
    clip = ClipVisionSpec(336, 14, 1024, 4096, 16, depth=23, activation="quick_gelu", layer_norm_eps=1e-5)
    assert clip.sizes == table["llava-1.5-7b"]["vision"]
    qwen = WindowSpec(1280, 3420, 16, 32, (7, 15, 23, 31), window=4, patch_size=14, frames=2, max_tokens=4096)
    assert qwen.sizes == table["qwen2.5-vl-7b"]["vision"]


def test_tiles_are_encoded_one_by_one():
    """Five tiles cost five times one: images of LLaVA-NeXT."""
    m = model_sizes.model("llava-1.5-7b")
    five = model_sizes.Model(replace(m.manifest, num_visual_tokens=5 * 576))
    assert five.vision_flops == 5 * m.vision_flops and five.vision_bytes == m.vision_bytes


def test_quantized_models_need_less_memory():
    m = model_sizes.model("llava-1.5-7b")
    parts = PrecisionInfo("fp32", "int8", "int8")
    less = model_sizes.Model(replace(m.manifest, precision=parts))
    assert less.head_bytes * 2 == m.head_bytes and m.vision_bytes / 2 < less.vision_bytes < m.vision_bytes
    assert less.layer_bytes == model_sizes.model("llava-1.5-7b", precision="fp16").layer_bytes

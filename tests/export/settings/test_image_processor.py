"""Processor files to bundle settings: image processors, against transformers' own."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from transformers import AutoProcessor

from foveate.engines.errors import UserError
from foveate.export import models
from foveate.export.models import llava
from foveate.runtime.images.processor import image_processor
from foveate.runtime.text.chat_prompt import ChatTokenizer, ImageSlot, Turn


@pytest.mark.parametrize("size", [(56, 56), (80, 61), (41, 200)])
def test_images_equal_those_of_transformers(copy, size):
    image = Image.fromarray(np.random.default_rng(1).integers(0, 256, (*size, 3), np.uint8))
    theirs = AutoProcessor.from_pretrained(copy).image_processor(image, return_tensors="np")["pixel_values"]
    assert np.abs(image_processor(models.load(str(copy)).image).preprocess(image) - theirs).max() < 1e-5


OLD = {"size": 56, "crop_size": 56, "do_center_crop": True, "image_processor_type": "CLIPImageProcessor"}
STEPS = {
    "numbers for sizes": (OLD, {"shortest_edge": 56, "crop": [56, 56]}),
    "height and width": (
        {"size": {"height": 56, "width": 56}, "do_center_crop": False},
        {"resize": [56, 56], "size": [56, 56]},
    ),
    "no normalization": ({**OLD, "do_normalize": False}, {"rescale": 1 / 255}),
}


@pytest.mark.parametrize(("config", "expected"), STEPS.values(), ids=STEPS)
def test_forms_of_image_configs(copy, edit_json, config, expected):
    edit_json(copy / "processor_config.json", image_processor=None)
    (copy / "preprocessor_config.json").write_text("{}")
    edit_json(copy / "preprocessor_config.json", **config)
    settings = models.load(str(copy)).image
    assert {key: settings[key] for key in expected} == expected
    assert ("mean" in settings) == ("do_normalize" not in config)
    image_processor(settings).preprocess(Image.new("RGB", (70, 90)))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"do_pad": True}, "do_pad"),
        ({"image_processor_type": "SiglipImageProcessor"}, "SiglipImageProcessor"),
        ({"crop_size": {"height": 28, "width": 28}}, "28"),
        ({"size": {"longest_edge": 56}}, "longest_edge"),
    ],
)
def test_other_image_processing_is_refused(copy, edit_json, change, named):
    edit_json(copy / "processor_config.json", image_processor=OLD | change)
    with pytest.raises(UserError, match=named):
        models.load(str(copy))


def test_tiny_has_settings_that_the_runtime_takes(tmp_path):
    parts = llava.tiny()
    assert image_processor(parts.image).preprocess(Image.new("RGB", (70, 90))).shape == (1, 3, 56, 56)
    (tmp_path / "tokenizer.json").write_bytes(parts.files["tokenizer.json"])
    tokenizer = ChatTokenizer(tmp_path / "tokenizer.json", parts.prompt)
    before, slot, _ = tokenizer.encode_turns([Turn("user", "hi", images=1)])
    assert before[0] == parts.prompt["bos_id"] and isinstance(slot, ImageSlot)

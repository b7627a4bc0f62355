"""Processor files to bundle settings: image processors, against transformers' own."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from transformers import AutoProcessor

from foveate.engines.errors import UserError
from foveate.export import models
from foveate.export.checkpoints.random_weights import Dummy
from foveate.export.models import llava
from foveate.export.settings.image_processor import tile_settings, window_settings
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


class Files(Dummy):
    """A checkpoint that has nothing but a ``preprocessor_config.json``."""

    load_format = "auto"

    def __init__(self, values):
        super().__init__("here", {})
        self.values = values

    def json(self, name):
        return self.values if name == "preprocessor_config.json" else None


@pytest.mark.parametrize(
    "change",
    [
        {"image_grid_pinpoints": [[336, 672]]},
        {"size": {"shortest_edge": 224}},
        {"crop_size": {"height": 224, "width": 224}},
    ],
)
def test_a_processor_that_cuts_otherwise_than_the_model_is_refused(change):
    fine = {
        "image_processor_type": "LlavaNextImageProcessor",
        "size": {"shortest_edge": 336},
        "crop_size": {"height": 336, "width": 336},
        "image_grid_pinpoints": [[336, 672], [672, 336]],
    }
    pinpoints = [[336, 672], [672, 336]]
    settings = tile_settings(Files(fine), 336, pinpoints)
    assert settings["tile"] == 336 and settings["pinpoints"] == pinpoints and "crop" not in settings
    with pytest.raises(UserError, match="image processor and model disagree"):
        tile_settings(Files(fine | change), 336, pinpoints)


def test_an_image_processor_of_another_kind_is_refused():
    with pytest.raises(UserError, match="got SiglipImageProcessor, expected LlavaNextImageProcessor"):
        tile_settings(Files({"image_processor_type": "SiglipImageProcessor"}), 336, [[336, 672]])
    with pytest.raises(UserError, match="got CLIPImageProcessor, expected Qwen2VLImageProcessor"):
        window_settings(Files({"image_processor_type": "CLIPImageProcessor"}), 14, 2, 2, 4, 2)
    with pytest.raises(UserError, match="image processor and vision encoder disagree"):
        window_settings(Files({"patch_size": 16}), 14, 2, 2, 4, 2)

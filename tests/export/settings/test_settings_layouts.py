"""Image and video settings in every layout of transformers 4 and 5, against what transformers loads."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import qwen_checkpoint
from PIL import Image
from transformers import AutoImageProcessor
from transformers.video_processing_utils import BaseVideoProcessor

from foveate.engines.errors import UserError
from foveate.export import models
from foveate.runtime.images.processor import image_processor

QWEN = {"image_processor_type": "Qwen2VLImageProcessor", "patch_size": 4}
PIXELS = {"shortest_edge": 512, "longest_edge": 2048}
IMAGE, PROCESSOR, VIDEO = (
    "preprocessor_config.json",
    "processor_config.json",
    "video_preprocessor_config.json",
)

QWEN_FORMS = {
    "4.45: pixels twice": {
        IMAGE: QWEN | {"min_pixels": 512, "max_pixels": 2048, "size": {"min_pixels": 512, "max_pixels": 2048}}
    },
    "4.52: size": {IMAGE: QWEN | {"size": PIXELS}},
    "size, nulls and Fast": {
        IMAGE: QWEN
        | {
            "size": PIXELS,
            "min_pixels": None,
            "max_pixels": None,
            "crop_size": None,
            "do_center_crop": None,
            "do_pad": None,
            "device": None,
            "image_processor_type": "Qwen2VLImageProcessorFast",
        }
    },
    "pixels stand above size": {IMAGE: QWEN | {"size": PIXELS, "min_pixels": 256, "max_pixels": 1024}},
    "one of both": {IMAGE: QWEN | {"size": PIXELS, "min_pixels": 1024}},
    "the fewest pixels alone": {IMAGE: QWEN | {"min_pixels": 512}},
    "nothing": {IMAGE: QWEN},
    "no type": {IMAGE: {"patch_size": 4, "size": PIXELS}},
    "5: nested": {PROCESSOR: {"image_processor": QWEN | {"size": PIXELS}}},
    "5 and 4, which differ": {PROCESSOR: {"image_processor": QWEN | {"size": PIXELS}}, IMAGE: QWEN},
    "5 without, and 4": {PROCESSOR: {"image_processor": None}, IMAGE: QWEN | {"size": PIXELS}},
    "other numbers": {
        IMAGE: QWEN | {"size": PIXELS, "image_mean": [0.5, 0.4, 0.3], "image_std": 0.5, "resample": 2}
    },
}


@pytest.fixture(scope="module")
def qwen(tmp_path_factory):
    path = tmp_path_factory.mktemp("qwen")
    qwen_checkpoint.save_checkpoint(path)
    (path / IMAGE).unlink()
    return path


def write(path, files):
    for name, values in files.items():
        (path / name).write_text(json.dumps(values))
    return path


def images():
    rng = np.random.default_rng(4)
    return [
        Image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8))
        for size in [(48, 48), (9, 30), (400, 280)]
    ]


@pytest.mark.parametrize("files", QWEN_FORMS.values(), ids=QWEN_FORMS)
def test_images_of_qwen(qwen, tmp_path, files):
    path = write(shutil.copytree(qwen, tmp_path / "copy"), files)
    ours, theirs = models.load(str(path)).image, AutoImageProcessor.from_pretrained(path)
    assert (ours["min_pixels"], ours["max_pixels"]) == (
        theirs.size.shortest_edge,
        min(theirs.size.longest_edge, 3840 * 64),
    )
    for image in images():
        expected = theirs(image, return_tensors="np")["pixel_values"]
        got = image_processor(ours).preprocess(image)
        assert np.allclose(np.sort(got, axis=None), np.sort(expected, axis=None), atol=1e-5)


def test_the_first_name_of_qwens_image_processor(qwen, tmp_path):
    """Transformers 4.49 wrote it, 5 does not know it."""
    files = [
        QWEN | {"size": PIXELS} | kind for kind in ({}, {"image_processor_type": "Qwen2_5_VLImageProcessor"})
    ]
    path = shutil.copytree(qwen, tmp_path / "copy")
    later, first = (models.load(str(write(path, {IMAGE: file}))).image for file in files)
    assert first == later


SQUARE = {"crop_size": {"height": 56, "width": 56}}
CLIP_FORMS = {
    "numbers": {IMAGE: {"size": 56, "crop_size": 56, "image_processor_type": "CLIPImageProcessor"}},
    "a pair": {
        IMAGE: {"size": [56, 56], "crop_size": [56, 56], "image_processor_type": "CLIPImageProcessor"}
    },
    "a number for a square": {IMAGE: SQUARE | {"size": 56, "default_to_square": True}},
    "feature extractor": {IMAGE: SQUARE | {"size": 56, "feature_extractor_type": "CLIPFeatureExtractor"}},
    "LLaVA's own": {
        IMAGE: SQUARE | {"size": {"shortest_edge": 56}, "image_processor_type": "LlavaImageProcessorFast"}
    },
    "nested, and older": {
        PROCESSOR: {"image_processor": SQUARE | {"size": {"shortest_edge": 60}}},
        IMAGE: SQUARE | {"size": 56},
    },
    "a step that is null": {
        IMAGE: {"size": {"height": 56, "width": 56}, "do_center_crop": None, "do_pad": None}
    },
    "one number for all channels": {
        IMAGE: SQUARE | {"size": 56, "image_mean": [0.5, 0.5, 0.5], "image_std": [0.25, 0.5, 1]}
    },
}


@pytest.mark.parametrize("files", CLIP_FORMS.values(), ids=CLIP_FORMS)
def test_images_of_llava(copy, files):
    (copy / PROCESSOR).unlink()
    ours = models.load(str(write(copy, files))).image
    theirs = AutoImageProcessor.from_pretrained(copy)
    for image in images():
        expected = theirs(image, return_tensors="np")["pixel_values"]
        assert np.abs(image_processor(ours).preprocess(image) - expected).max() < 1e-5


FRAMES = {"size": {"shortest_edge": 300, "longest_edge": 1100}, "fps": 4, "max_frames": 16, "patch_size": 4}
OTHER = {"size": {"shortest_edge": 500, "longest_edge": 1500}, "fps": 8, "min_frames": 6, "patch_size": 4}
VIDEO_FORMS = {
    "4.52": {IMAGE: QWEN, VIDEO: FRAMES},
    "5: nested": {PROCESSOR: {"image_processor": QWEN, "video_processor": FRAMES}},
    "5 and 4, which differ": {
        PROCESSOR: {"image_processor": QWEN, "video_processor": FRAMES},
        IMAGE: QWEN,
        VIDEO: OTHER,
    },
    "5 for images, 4 for videos": {PROCESSOR: {"image_processor": QWEN}, VIDEO: OTHER},
    "5 without, and 4": {PROCESSOR: {"image_processor": QWEN, "video_processor": None}, VIDEO: OTHER},
    "pixels": {IMAGE: QWEN, VIDEO: {"min_pixels": 300, "max_pixels": 1100, "fps": 1, "patch_size": 4}},
    "pixels stand above size": {IMAGE: QWEN, VIDEO: FRAMES | {"min_pixels": 400, "max_pixels": None}},
    "oldest: frames beside the images' settings": {IMAGE: QWEN | {"fps": 3, "max_frames": 32}},
    "nulls": {IMAGE: QWEN, VIDEO: FRAMES | {"fps": None, "min_frames": None, "num_frames": None}},
    "few tokens": {IMAGE: QWEN, VIDEO: FRAMES | {"max_video_tokens": 100}},
}
# Of transformers' Qwen2VLVideoProcessor, whose module needs torchvision.
CLASS = {"min_frames": 4, "max_frames": 768, "max_video_tokens": 128000}
SIZE = {"shortest_edge": 128 * 28 * 28, "longest_edge": 28 * 28 * 768}


@pytest.mark.parametrize("form", VIDEO_FORMS)
def test_videos_of_qwen(qwen, tmp_path, form):
    path = write(shutil.copytree(qwen, tmp_path / "copy"), VIDEO_FORMS[form])
    said, _ = BaseVideoProcessor.get_video_processor_dict(path)
    theirs = CLASS | {"fps": 2} | {key: value for key, value in said.items() if value is not None}
    size = SIZE if form.startswith("oldest") else dict(theirs.get("size", SIZE))
    size["shortest_edge"] = theirs.get("min_pixels", size["shortest_edge"])
    size["longest_edge"] = theirs.get("max_pixels", size["longest_edge"])
    image = models.load(str(path)).image
    most = image["max_pixels"]
    assert image["video"] == {
        "fps": theirs["fps"],
        "min_frames": theirs["min_frames"],
        "max_frames": theirs["max_frames"],
        "min_pixels": min(size["shortest_edge"], most // 2),
        "max_pixels": min(size["longest_edge"], most),
        "total_pixels": min(most, theirs["max_video_tokens"] * 64) * 9 // 10,
        "tokens_per_second": 4,
    }


def test_the_class_has_the_defaults_that_are_written_here():
    pytest.importorskip("torchvision", reason="transformers' video processors need it")
    from transformers import Qwen2VLVideoProcessor

    assert {key: getattr(Qwen2VLVideoProcessor, key) for key in CLASS} == CLASS
    assert Qwen2VLVideoProcessor.size == SIZE


REFUSED = {
    "limits of pixels in size": (
        IMAGE,
        QWEN | {"size": {"min_pixels": 512, "max_pixels": 2048}},
        "how large images",
    ),
    "no resizing": (IMAGE, QWEN | {"do_resize": False}, "do_resize"),
    "another mean for videos": (VIDEO, FRAMES | {"image_mean": [0.5, 0.5, 0.5]}, "disagree"),
    "other patches for videos": (
        VIDEO,
        FRAMES | {"patch_size": 16},
        "video processor and vision encoder disagree",
    ),
    "frames by their number": (VIDEO, {"num_frames": 8}, "num_frames"),
    "another video processor": (VIDEO, {"video_processor_type": "LlavaOnevisionVideoProcessor"}, "Onevision"),
    "no size of frames": (VIDEO, {"size": {"height": 56, "width": 56}}, "how large a video's frames"),
    "a mean that is null": (IMAGE, QWEN | {"image_mean": None}, "image_mean"),
    "a filter that is null": (IMAGE, {**QWEN, "resample": None}, "resample"),
    "two means": (IMAGE, QWEN | {"image_mean": [0.5, 0.5]}, "image_mean"),
}


@pytest.mark.parametrize(("name", "values", "named"), REFUSED.values(), ids=REFUSED)
def test_unsupported_settings_are_refused(qwen, tmp_path, name, values, named):
    path = write(shutil.copytree(qwen, tmp_path / "copy"), {IMAGE: QWEN, name: values})
    with pytest.raises(UserError, match=named) as error:
        models.load(str(path))
    assert str(error.value).count(" | ") >= 2


CLIP_REFUSED = {
    "two edges": ({"size": {"shortest_edge": 56, "longest_edge": 80}}, "cannot resize"),
    "a crop that is none": ({"size": 56, "crop_size": {"shortest_edge": 56}}, "cannot crop"),
    "KOSMOS-2": ({"size": 56, "crop_size": 56, "use_square_size": True}, "use_square_size"),
    "another feature extractor": (
        {"size": 56, "feature_extractor_type": "ViTFeatureExtractor"},
        "ViTImageProcessor",
    ),
}


@pytest.mark.parametrize(("values", "named"), CLIP_REFUSED.values(), ids=CLIP_REFUSED)
def test_unsupported_settings_of_llava_are_refused(copy, values, named):
    (copy / PROCESSOR).unlink()
    with pytest.raises(UserError, match=named):
        models.load(str(write(copy, {IMAGE: values})))

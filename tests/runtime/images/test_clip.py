"""Preprocessing equals Hugging Face's processor; images that are none are refused with one sentence."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from image_samples import noise, smooth
from PIL import Image, ImageOps
from sklearn.datasets import load_sample_images
from transformers import AutoImageProcessor, CLIPImageProcessor

from foveate.engines.errors import UserError
from foveate.runtime.images import clip as module
from foveate.runtime.images.clip import ClipProcessor
from foveate.runtime.images.image_file import load_image
from foveate.runtime.images.processor import image_processor


def preprocess(image, settings) -> np.ndarray:
    return image_processor(settings).preprocess(load_image(image))


def patch_boxes(size, settings, grid) -> np.ndarray:
    return image_processor(settings).patch_boxes(size, grid)


MEAN, STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
SETTINGS = {
    "kind": "clip",
    "shortest_edge": 336,
    "resample": 3,
    "crop": [336, 336],
    "rescale": 1 / 255,
    "mean": MEAN,
    "std": STD,
    "size": [336, 336],
}
CONFIG = {
    "image_processor_type": "CLIPImageProcessor",
    "size": {"shortest_edge": 336},
    "crop_size": {"height": 336, "width": 336},
    "resample": 3,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "image_mean": MEAN,
    "image_std": STD,
}


def images() -> dict[str, tuple[Image.Image, str, dict]]:
    """Name -> (pixels, file format, options of ``save``)."""
    rgb = Image.fromarray
    out = {
        f"{h}x{w}": (rgb(noise(h, w)), "PNG", {})
        for h, w in ((336, 336), (337, 335), (500, 333), (97, 1001), (1, 1), (2, 3), (640, 480))
    }
    out["one pixel wide"] = rgb(noise(50, 1)), "PNG", {}
    out["one pixel high"] = rgb(noise(1, 37)), "PNG", {}
    out["greyscale"] = rgb(noise(211, 300, 1)), "PNG", {}
    out["grey with alpha"] = rgb(noise(90, 120, 2), "LA"), "PNG", {}
    out["bilevel"] = rgb(noise(130, 90, 1)).convert("1"), "PNG", {}
    out["palette"] = rgb(smooth(123, 211)).quantize(37), "PNG", {}
    out["palette with a transparent colour"] = rgb(smooth(99, 150)).quantize(16), "PNG", {"transparency": 3}
    out["rgb with a transparent colour"] = rgb(smooth(80, 70)), "PNG", {"transparency": (127, 0, 0)}
    out["alpha"] = rgb(noise(301, 200, 4)), "PNG", {}
    out["alpha webp"] = rgb(noise(120, 250, 4)), "WEBP", {"lossless": True}
    out["cmyk"] = rgb(noise(140, 260, 4), "CMYK"), "JPEG", {"quality": 95}
    out["ycbcr tiff"] = rgb(smooth(240, 181)).convert("YCbCr"), "TIFF", {}
    grey16 = np.random.default_rng(1).integers(0, 400, (150, 210)).astype(np.uint16)
    out["16 bit"] = rgb(grey16), "PNG", {}
    out["16 bit tiff"] = rgb(grey16 * 150), "TIFF", {}
    out["gif"] = (
        rgb(smooth(77, 91)).quantize(64),
        "GIF",
        {"save_all": True, "append_images": [Image.new("P", (91, 77))]},
    )
    for name, photo in zip(load_sample_images().filenames, load_sample_images().images, strict=True):
        out[Path(name).stem] = rgb(photo), "JPEG", {"quality": 90}
    for tag in range(2, 9):
        exif = Image.Exif()
        exif[0x0112] = tag
        out[f"exif orientation {tag}"] = rgb(smooth(120 + tag, 200)), "JPEG", {"exif": exif}
    return out


IMAGES = images()


@pytest.fixture(scope="module")
def processor(tmp_path_factory):
    """Return what AutoImageProcessor makes of a LLaVA-1.5 directory."""
    folder = tmp_path_factory.mktemp("processor")
    (folder / "preprocessor_config.json").write_text(json.dumps(CONFIG))
    return AutoImageProcessor.from_pretrained(folder)


def grey_levels(pixel_values: np.ndarray) -> np.ndarray:
    """Normalised values scaled back to [0, 1]."""
    mean, std = (np.array(v)[:, None, None] for v in (MEAN, STD))
    return pixel_values[0] * std + mean


@pytest.mark.parametrize("name", IMAGES)
def test_same_pixels_as_hugging_face(name, processor, tmp_path):
    image, kind, options = IMAGES[name]
    path = tmp_path / f"image.{kind.lower()}"
    image.save(path, kind, **options)
    with Image.open(path) as opened:
        want = processor(images=ImageOps.exif_transpose(opened), return_tensors="np").pixel_values
    got = preprocess(path, SETTINGS)
    assert got.dtype == np.float32 and got.shape == want.shape == (1, 3, 336, 336)
    assert np.abs(grey_levels(got) - grey_levels(want)).max() <= 1 / 255
    assert np.array_equal(got, want)  # Pillow resizes in both: not merely close


def test_there_are_enough_images():
    assert len(IMAGES) >= 20 and {"china", "flower"} <= set(IMAGES)


@pytest.mark.parametrize("tag", range(2, 9))
def test_exif_rotation_does_something(tag, tmp_path):
    """The comparison above would also hold if neither side turned the image."""
    image, kind, options = IMAGES[f"exif orientation {tag}"]
    image.save(tmp_path / "turned", kind, **options)
    image.save(tmp_path / "plain", kind)
    turned, plain = load_image(tmp_path / "turned"), load_image(tmp_path / "plain")
    assert turned.size == (plain.size if tag < 5 else plain.size[::-1])
    assert turned.tobytes() != plain.tobytes()


@pytest.mark.parametrize(
    "size, crop, edge, side",
    [((40, 60), [56, 48], 30, None), ((61, 40), [31, 77], 50, None), ((50, 70), None, None, [42, 56])],
)
def test_other_settings(size, crop, edge, side):
    """A crop larger than the image pads; without a crop the resize alone decides."""
    image = Image.fromarray(noise(size[1], size[0]))
    settings = {
        "kind": "clip",
        "resample": 2,
        "rescale": 1 / 255,
        "mean": MEAN,
        "std": STD,
        "size": crop or side,
    }
    settings |= {"shortest_edge": edge} if edge else {"resize": side}
    settings |= {"crop": crop} if crop else {}
    theirs = CLIPImageProcessor(
        size={"shortest_edge": edge} if edge else {"height": side[0], "width": side[1]},
        do_center_crop=bool(crop),
        crop_size={"height": crop[0], "width": crop[1]} if crop else None,
        resample=2,
        image_mean=MEAN,
        image_std=STD,
    )
    want = theirs(images=image, return_tensors="np").pixel_values
    assert np.array_equal(preprocess(image, settings), want)


def test_steps_that_are_absent_are_not_done():
    array = noise(5, 9)
    got = preprocess(array, {"kind": "clip", "size": [5, 9]})
    assert np.array_equal(got[0], array.transpose(2, 0, 1))


def test_arrays_and_pil_images_equal_files(tmp_path):
    rgba = noise(60, 80, 4)
    Image.fromarray(rgba).save(tmp_path / "a.png")
    want = preprocess(tmp_path / "a.png", SETTINGS)
    assert np.array_equal(preprocess(rgba, SETTINGS), want)
    assert np.array_equal(preprocess(Image.fromarray(rgba), SETTINGS), want)
    assert np.array_equal(preprocess(str(tmp_path / "a.png"), SETTINGS), want)
    grey = noise(60, 80, 1)
    assert np.array_equal(
        preprocess(grey[:, :, None], SETTINGS), preprocess(np.stack([grey] * 3, 2), SETTINGS)
    )


def test_a_long_strip_is_not_blown_up():
    """A pixel by 400,000 would grow to 336 x 134,400,000, 135 GB: only what the crop sees is resized."""
    level = noise(400_000, 1)
    for array in (level, level.transpose(1, 0, 2)):
        assert preprocess(array, SETTINGS).shape == (1, 3, 336, 336)
    tall, wide = (grey_levels(preprocess(a, SETTINGS)) for a in (level, level.transpose(1, 0, 2)))
    assert np.array_equal(tall, wide.transpose(0, 2, 1))
    # the crop shows one pixel of the strip's length, around the middle between two pixels
    assert np.abs(tall.mean((1, 2)) - level[199_999:200_001, 0].mean(0) / 255).max() < 0.05


@pytest.mark.parametrize(
    "height, width",
    [(500, 333), (333, 500), (783, 282), (1500, 2), (2, 1500), (4000, 5), (5, 4000), (900, 2000)],
)
def test_resizing_only_what_is_seen_gives_the_same_pixels(height, width, monkeypatch):
    array = noise(height, width)
    whole = preprocess(array, SETTINGS)
    monkeypatch.setattr(module, "_RESIZE_WHOLE", 0)
    assert np.abs(grey_levels(whole) - grey_levels(preprocess(array, SETTINGS))).max() <= 1.001 / 255


def test_unknown_settings_are_refused():
    with pytest.raises(UserError, match="unknown kind of image preprocessing"):
        preprocess(noise(4, 4), {"kind": "siglip", "size": [4, 4]})
    with pytest.raises(ValueError, match="not size 8 x 8"):
        preprocess(noise(4, 4), {"kind": "clip", "size": [8, 8]})


@pytest.mark.parametrize("width, height", [(336, 336), (640, 427), (427, 640), (31, 1000)])
def test_a_patch_is_where_the_boxes_say(width, height):
    """Colour one patch's box on the image: that patch of the tensor, and no other, must show it."""
    grid, rng = (24, 24), np.random.default_rng(width)
    boxes = patch_boxes((width, height), SETTINGS, grid)
    assert boxes.shape == (576, 4)
    for patch in rng.choice(576, 6, replace=False):
        scale = 4  # paint on a larger image of the same shape, so that edges between pixels can be met
        image = np.zeros((height * scale, width * scale, 3), np.uint8)
        left, top, right, bottom = np.round(boxes[patch] * scale).astype(int)
        if width < 24 or height < 24:
            left, right = 0, width * scale  # a patch is narrower than a pixel there
        image[max(top, 0) : bottom, max(left, 0) : right] = 255
        tensor = grey_levels(preprocess(image, SETTINGS))[0]
        cells = tensor.reshape(24, 14, 24, 14).mean((1, 3))
        if width < 24:
            assert (cells.mean(1).argmax(), cells.mean(1).max() > 0.6) == (patch // 24, True)
        else:
            assert cells.argmax() == patch and cells.max() > 0.6
            others = np.delete(cells.ravel(), patch)
            assert others.max() < 0.4


def test_the_boxes_tile_what_is_seen():
    size = (640, 427)
    boxes = patch_boxes(size, SETTINGS, (24, 24))
    left, top, right, bottom = ClipProcessor.from_json(SETTINGS).seen_box(size)
    assert boxes[0, :2].tolist() == [left, top] and boxes[-1, 2:].tolist() == [right, bottom]
    assert (top, bottom) == (0, 427) and left == pytest.approx(640 - right, abs=2) and left > 100
    assert np.array_equal(boxes[:-1, 2][np.arange(575) % 24 != 23], boxes[1:, 0][np.arange(575) % 24 != 23])

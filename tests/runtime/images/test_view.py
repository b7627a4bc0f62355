"""Sizes, boxes and coordinates map back to the original image, against transformers' processors."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from transformers import CLIPImageProcessor, LlavaNextImageProcessorPil, Qwen2VLImageProcessorPil

from foveate.runtime import cli
from foveate.runtime.images.processor import image_processor
from foveate.runtime.images.token_layout import Layout
from foveate.runtime.images.view import View
from foveate.runtime.video.video_file import Video


def layout(size, settings, grid) -> Layout:
    return image_processor(settings).token_layout(size, grid)


def patch_boxes(size, settings, grid) -> np.ndarray:
    return image_processor(settings).patch_boxes(size, grid)


def view_of(size, settings, plan) -> View:
    return image_processor(settings).view(size, plan)


def film(size, settings, frames, interval) -> Layout:
    return image_processor(settings).video.token_layout(size, frames, interval)


SIZES = ((640, 427), (427, 640), (300, 900), (56, 56), (1003, 77))
PINPOINTS = [[56, 112], [112, 56], [112, 112], [168, 56], [56, 168]]
CLIP = {"kind": "clip", "shortest_edge": 56, "resample": 3, "crop": [56, 56], "size": [56, 56]}
PADS = {"kind": "clip", "shortest_edge": 40, "resample": 3, "crop": [56, 56], "size": [56, 56]}
TILES = {"kind": "anyres", "tile": 56, "pinpoints": PINPOINTS, "resample": 3}
WINDOWS = {"kind": "windows", "patch": 14, "merge": 2, "frames": 2, "window": 4, "min_pixels": 28 * 28 * 4}
WINDOWS |= {"max_pixels": 28 * 28 * 64, "resample": 3}
PLAIN = {"do_rescale": False, "do_normalize": False}


def clip(image: Image.Image, edge: int) -> np.ndarray:
    sizes = {"size": {"shortest_edge": edge}, "crop_size": {"height": 56, "width": 56}}
    return CLIPImageProcessor(**sizes, **PLAIN)(image, return_tensors="np").pixel_values[0]


def tiles(image: Image.Image) -> np.ndarray:
    """The tiles put together: the canvas."""
    processor = LlavaNextImageProcessorPil(
        size={"shortest_edge": 56},
        crop_size={"height": 56, "width": 56},
        image_grid_pinpoints=PINPOINTS,
        **PLAIN,
    )
    found = processor(image, return_tensors="np").pixel_values[0][1:]
    height, width = next(
        (h // 56, w // 56)
        for h, w in PINPOINTS
        if h * w == len(found) * 56 * 56 and (len(found) in (1, 4) or (h > w) == (image.height > image.width))
    )
    return (
        found.reshape(height, width, 3, 56, 56).transpose(2, 0, 3, 1, 4).reshape(3, height * 56, width * 56)
    )


def windows(image: Image.Image) -> np.ndarray:
    """The patches put together: the resized image."""
    limits = {"shortest_edge": WINDOWS["min_pixels"], "longest_edge": WINDOWS["max_pixels"]}
    found = Qwen2VLImageProcessorPil(size=limits, **PLAIN)(image, return_tensors="np")
    _, rows, columns = found.image_grid_thw[0]
    patches = found.pixel_values.reshape(rows // 2, columns // 2, 2, 2, 3, 2, 14, 14)[:, :, :, :, :, 0]
    return patches.transpose(4, 0, 2, 5, 1, 3, 6).reshape(3, rows * 14, columns * 14)


KINDS = {
    "clip": (CLIP, lambda image: clip(image, 56)),
    "clip that pads": (PADS, lambda image: clip(image, 40)),
    "tiles": (TILES, tiles),
    "windows": (WINDOWS, windows),
}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", KINDS)
def test_coordinates_of_the_resized_image_map_back(kind, size):
    """A white square of the original is found again where transformers' image shows it."""
    settings, processor = KINDS[kind]
    size = (900, 100) if (kind, size) == ("tiles", (1003, 77)) else size  # that one has no tokens of tiles
    view = view_of(size, settings, layout(size, settings, (4, 4)))
    left, top, right, bottom = view.box
    inside = max(left, 0), max(top, 0), min(right, size[0]), min(bottom, size[1])
    random = np.random.default_rng(size[0])
    for _ in range(4):
        half = [max(1, round(1.5 * scale)) for scale in view.scale]
        middle = [
            random.uniform(low + 2 * h, high - 2 * h) if high - low > 4 * h else (low + high) / 2
            for low, high, h in zip(inside[:2], inside[2:], half, strict=True)
        ]
        box = [max(0, round(middle[0]) - half[0]), max(0, round(middle[1]) - half[1])]
        box += [min(size[0], round(middle[0]) + half[0]), min(size[1], round(middle[1]) + half[1])]
        pixels = np.zeros((size[1], size[0], 3), np.uint8)
        pixels[box[1] : box[3], box[0] : box[2]] = 255
        resized = processor(Image.fromarray(pixels))[0].astype(float)
        assert view.resized == resized.shape[::-1]
        weight = resized / resized.sum()
        at = [(weight.sum(axis) * (np.arange(resized.shape[1 - axis]) + 0.5)).sum() for axis in (0, 1)]
        want = [(box[0] + box[2]) / 2, (box[1] + box[3]) / 2]
        assert np.abs(np.subtract(view.to_original(at), want) / view.scale).max() < 0.35  # of a resized pixel


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", KINDS)
def test_tokens_have_boxes(kind, size):
    settings, _ = KINDS[kind]
    plan = layout(size, settings, (4, 4))
    view = view_of(size, settings, plan)
    assert view.boxes.shape == (plan.total, 4)
    assert (np.isnan(view.boxes[:, 0]) == (plan.order < 0)).all()
    told = view.boxes[~np.isnan(view.boxes[:, 0])]
    if kind != "tiles" or plan.total > 16:
        assert np.array_equal(told[-view.grid[0] * view.grid[1] :], patch_boxes(size, settings, view.grid))
    if kind == "tiles":  # the first sixteen show the whole image; a thin strip has no others
        assert (plan.total == 16) == (size == (1003, 77))
        assert view.boxes[0].tolist() == [0, 0, size[0] / 4, size[1] / 4]
        assert view.boxes[15].tolist() == [size[0] * 3 / 4, size[1] * 3 / 4, *size]
    kept = np.array([3, -1, 0])
    found = view.kept_boxes(kept)
    assert np.array_equal(found[[0, 2]], view.boxes[[3, 0]]) and np.isnan(found[1]).all()


def test_a_video_has_the_boxes_of_each_step():
    limits = {"min_pixels": 100352, "max_pixels": 602112, "total_pixels": 11560550, "tokens_per_second": 2}
    settings = {**WINDOWS, "max_pixels": 12845056, "video": {"fps": 2, **limits}}
    video = Video((Image.new("RGB", (640, 360)),) * 4, 0.5)
    plan = film(video.size, settings, 4, 0.5)
    view = view_of(video.size, settings, plan)
    one = len(view.boxes) // 2
    assert np.array_equal(view.boxes[:one], view.boxes[one:]) and view.boxes[-1, 2:].tolist() == [640, 360]
    assert view.resized == (view.grid[1] * 28, view.grid[0] * 28)


def test_points_come_in_pairs():
    view = view_of((100, 50), WINDOWS, layout((100, 50), WINDOWS, (4, 4)))
    with pytest.raises(ValueError, match="pairs of x and y"):
        view.to_original([1, 2, 3])
    assert view.to_original([0, 0, *view.resized]) == [0, 0, 100, 50]


def test_run_and_the_library_tell(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An EXIF tag turns the image; what is told is about the upright one."""
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (64, 32), "red").save(tmp_path / "x.jpg", exif=exif)
    arguments = ["--image", str(tmp_path / "x.jpg"), "--keep", "3", "--max-new-tokens", "2", "--json"]
    assert cli.main(["run", str(bundle), "Why?", *arguments]) == 0
    document = json.loads(capsys.readouterr().out)
    (image,) = document["images"]
    boxes = image.pop("kept_boxes")
    assert image == {
        "size": [32, 64],
        "resized": [8, 8],
        "scale": [4.0, 8.0],
        "box": [0.0, 0.0, 32.0, 64.0],
        "grid": [4, 4],
    }
    for token, box in zip(document["kept"][0], boxes, strict=True):
        row, column = divmod(token, 4)
        assert box == [8 * column, 16 * row, 8 * column + 8, 16 * row + 16]


def test_the_example_in_the_docs(bundle: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    page = (Path(__file__).parents[3] / "docs/images.md").read_text()
    example = page.split("```python\n")[1].split("```")[0]
    monkeypatch.chdir(tmp_path)
    Path("bundles").mkdir()
    Path("bundles/qwen").symlink_to(bundle)
    Image.new("RGB", (80, 40), "red").save("street.jpg")
    Path("example.py").write_text(example)
    runpy.run_path("example.py")
    assert capsys.readouterr().out.startswith("(80, 40) (8, 8) (4, 4)\n[120.0, 100.0, 400.0, 220.0]\n[[")


def test_the_keys_in_the_docs_are_those_of_the_document() -> None:
    page = (Path(__file__).parents[3] / "docs/images.md").read_text()
    told = [
        line.split("`")[1] for line in page.split("| key | what |")[1].splitlines() if line.startswith("| `")
    ]
    view = view_of((100, 50), WINDOWS, layout((100, 50), WINDOWS, (4, 4)))
    assert told == [*view.to_json(), "kept_boxes"]

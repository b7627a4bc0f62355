"""The overlay shows the kept patches where they lie on the original picture."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_images

from foveate.engines.errors import UserError
from foveate.runtime.image import patch_boxes
from foveate.runtime.overlay import draw_overlay, save_overlay

SETTINGS = {"kind": "clip", "shortest_edge": 336, "resample": 3, "crop": [336, 336], "size": [336, 336]}
GRID = (24, 24)


def brightness(picture: Image.Image, box: np.ndarray, size: tuple[int, int]) -> float:
    """Mean grey level well inside a box given in pixels of a picture of ``size``."""
    scale = np.tile(np.divide(picture.size, size), 2)
    left, top, right, bottom = box * scale
    inset_x, inset_y = (right - left) / 4, (bottom - top) / 4
    part = np.asarray(picture)[
        int(top + inset_y) : int(bottom - inset_y) + 1, int(left + inset_x) : int(right - inset_x) + 1
    ]
    return float(part.mean())


@pytest.mark.parametrize("size", [(640, 427), (427, 640), (168, 168), (3000, 2000)])
def test_kept_patches_are_bright_and_the_rest_is_dimmed(size):
    kept = np.random.default_rng(size[0]).choice(576, 100, replace=False)
    picture = draw_overlay(np.full((size[1], size[0], 3), 200, np.uint8), kept, GRID, SETTINGS)
    boxes = patch_boxes(size, SETTINGS, GRID)
    levels = np.array([brightness(picture, box, size) for box in boxes])
    chosen = np.zeros(576, bool)
    chosen[kept] = True
    assert (levels[chosen] == 200).all()
    assert (levels[~chosen] < 140).all() and np.median(levels[~chosen]) < 100
    assert picture.width / picture.height == pytest.approx(size[0] / size[1], rel=0.01)
    assert 640 <= max(picture.size) <= 2048


def test_what_the_crop_cut_off_is_dimmed_though_everything_is_kept():
    size = (640, 320)
    picture = draw_overlay(np.full((320, 640, 3), 200, np.uint8), np.arange(576), GRID, SETTINGS)
    row = np.asarray(picture)[picture.height // 2, :, 0].astype(int)
    assert (row[: 640 // 4 - 3] < 100).all() and (row[-640 // 4 + 3 :] < 100).all()
    assert (row[640 // 4 + 3 : -640 // 4 - 3] == 200).all()
    assert size == picture.size


def test_kept_pixels_keep_their_colours():
    photo = load_sample_images().images[0]
    everything = np.asarray(draw_overlay(photo, np.arange(576), GRID, SETTINGS))
    nothing = np.asarray(draw_overlay(photo, np.array([], np.int64), GRID, SETTINGS))
    inside = np.s_[:, 120:520]
    assert np.array_equal(everything[inside], photo[inside])
    assert nothing.mean() < 0.55 * photo.mean()


def test_black_that_was_dropped_differs_from_black_that_was_kept():
    picture = np.asarray(draw_overlay(np.zeros((640, 640, 3), np.uint8), np.arange(288), GRID, SETTINGS))
    assert (picture[:300] == 0).all() and (picture[340:] > 10).all()


def test_merged_rows_are_left_out():
    photo = load_sample_images().images[1]
    kept = np.array([5, 77, 300])
    assert draw_overlay(photo, np.array([5, 77, 300, -1, -1]), GRID, SETTINGS) == draw_overlay(
        photo, kept, GRID, SETTINGS
    )


def test_a_grid_that_is_not_square():
    settings = {"kind": "clip", "resize": [40, 80], "size": [40, 80]}
    picture = draw_overlay(np.full((400, 800, 3), 240, np.uint8), np.array([7]), (2, 4), settings)
    array = np.asarray(picture)[:, :, 0]
    assert array[300, 700] == 240 and array[100, 700] < 130 and array[300, 500] < 130


def test_extremely_thin_pictures():
    for shape in ((5000, 1, 3), (1, 5000, 3), (1, 1, 3)):
        picture = draw_overlay(np.full(shape, 9, np.uint8), np.arange(0, 576, 3), GRID, SETTINGS)
        assert min(picture.size) >= 1 and max(picture.size) <= 2048


def test_saving(tmp_path):
    photo, kept = load_sample_images().images[0], np.arange(0, 576, 5)
    save_overlay(photo, kept, GRID, SETTINGS, tmp_path / "out.png")
    with Image.open(tmp_path / "out.png") as saved:
        assert saved.convert("RGB").tobytes() == draw_overlay(photo, kept, GRID, SETTINGS).tobytes()
    save_overlay(photo, kept, GRID, SETTINGS, str(tmp_path / "out.jpg"))
    with pytest.raises(UserError, match=r"got the suffix '\.txt'"):
        save_overlay(photo, kept, GRID, SETTINGS, tmp_path / "out.txt")
    with pytest.raises(UserError, match="No such file or directory"):
        save_overlay(photo, kept, GRID, SETTINGS, tmp_path / "nowhere" / "out.png")

"""The overlay shows the kept patches where they lie on the original image."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_images

from foveate.engines.errors import UserError
from foveate.runtime.images.overlay import draw_overlay, draw_stages, save_overlay
from foveate.runtime.images.processor import image_processor

SETTINGS = {"kind": "clip", "shortest_edge": 336, "resample": 3, "crop": [336, 336], "size": [336, 336]}
GRID = (24, 24)
PROCESSOR = image_processor(SETTINGS)


def brightness(image: Image.Image, box: np.ndarray, size: tuple[int, int]) -> float:
    """Mean grey level well inside a box given in pixels of an image of ``size``."""
    scale = np.tile(np.divide(image.size, size), 2)
    left, top, right, bottom = box * scale
    inset_x, inset_y = (right - left) / 4, (bottom - top) / 4
    part = np.asarray(image)[
        int(top + inset_y) : int(bottom - inset_y) + 1, int(left + inset_x) : int(right - inset_x) + 1
    ]
    return float(part.mean())


@pytest.mark.parametrize("size", [(640, 427), (427, 640), (168, 168), (3000, 2000)])
def test_kept_patches_are_bright_and_the_rest_is_dimmed(size):
    kept = np.random.default_rng(size[0]).choice(576, 100, replace=False)
    image = draw_overlay(np.full((size[1], size[0], 3), 200, np.uint8), kept, GRID, PROCESSOR)
    boxes = PROCESSOR.patch_boxes(size, GRID)
    levels = np.array([brightness(image, box, size) for box in boxes])
    chosen = np.zeros(576, bool)
    chosen[kept] = True
    assert (levels[chosen] == 200).all()
    assert (levels[~chosen] < 140).all() and np.median(levels[~chosen]) < 100
    assert image.width / image.height == pytest.approx(size[0] / size[1], rel=0.01)
    assert 640 <= max(image.size) <= 2048


def test_pixels_outside_the_crop_are_dimmed_even_if_all_tokens_are_kept():
    size = (640, 320)
    image = draw_overlay(np.full((320, 640, 3), 200, np.uint8), np.arange(576), GRID, PROCESSOR)
    row = np.asarray(image)[image.height // 2, :, 0].astype(int)
    assert (row[: 640 // 4 - 3] < 100).all() and (row[-640 // 4 + 3 :] < 100).all()
    assert (row[640 // 4 + 3 : -640 // 4 - 3] == 200).all()
    assert size == image.size


def test_kept_pixels_keep_their_colours():
    photo = load_sample_images().images[0]
    everything = np.asarray(draw_overlay(photo, np.arange(576), GRID, PROCESSOR))
    nothing = np.asarray(draw_overlay(photo, np.array([], np.int64), GRID, PROCESSOR))
    inside = np.s_[:, 120:520]
    assert np.array_equal(everything[inside], photo[inside])
    assert nothing.mean() < 0.55 * photo.mean()


def test_black_that_was_dropped_differs_from_black_that_was_kept():
    image = np.asarray(draw_overlay(np.zeros((640, 640, 3), np.uint8), np.arange(288), GRID, PROCESSOR))
    assert (image[:300] == 0).all() and (image[340:] > 10).all()


def test_rows_without_a_place_are_left_out():
    photo = load_sample_images().images[1]
    kept = np.array([5, 77, 300])
    assert draw_overlay(photo, np.array([5, 77, 300, -1, -1]), GRID, PROCESSOR) == draw_overlay(
        photo, kept, GRID, PROCESSOR
    )


def test_a_grid_that_is_not_square():
    settings = {"kind": "clip", "resize": [40, 80], "size": [40, 80]}
    image = draw_overlay(
        np.full((400, 800, 3), 240, np.uint8), np.array([7]), (2, 4), image_processor(settings)
    )
    array = np.asarray(image)[:, :, 0]
    assert array[300, 700] == 240 and array[100, 700] < 130 and array[300, 500] < 130


def test_extremely_thin_images():
    for shape in ((5000, 1, 3), (1, 5000, 3), (1, 1, 3)):
        image = draw_overlay(np.full(shape, 9, np.uint8), np.arange(0, 576, 3), GRID, PROCESSOR)
        assert min(image.size) >= 1 and max(image.size) <= 2048


def levels(image: Image.Image) -> np.ndarray:
    """Mean grey of each patch of a square image, frame and caption apart."""
    boxes = PROCESSOR.patch_boxes((image.width, image.width), GRID)
    return np.array([brightness(image, box, (image.width, image.width)) for box in boxes])


@pytest.fixture
def white() -> np.ndarray:
    return np.full((336, 336, 3), 200, np.uint8)


def test_merged_patches_stand_between_kept_and_dropped(white):
    kept, owner = np.array([100, 300, 500]), np.full(576, -1)
    owner[kept] = 0, 1, 2
    merged = np.array([101, 124, 301, 340])
    owner[merged] = 0, 0, 1, 2
    grey = levels(draw_overlay(white, kept, GRID, PROCESSOR, owner))
    dropped = np.setdiff1d(np.arange(576), [*kept, *merged])
    assert (grey[kept] == 200).all()
    assert (grey[merged] > np.quantile(grey[dropped], 0.98) + 15).all() and (grey[merged] < 185).all()
    assert np.median(grey[dropped]) < 100


def test_lines_lead_from_merged_patches_to_what_absorbed_them(white):
    kept, owner = np.array([12 * 24 + 3]), np.full(576, -1)
    owner[kept] = 0
    apart = owner.copy()
    apart[12 * 24 + 20] = 0  # same row of the grid, far to the right
    plain, joined = (
        np.asarray(draw_overlay(white, kept, GRID, PROCESSOR, o)).astype(int) for o in (owner, apart)
    )
    side = plain.shape[0] / 24
    changed = np.abs(joined - plain).max(2) > 8
    between = changed[:, int(5 * side) : int(19 * side)]
    assert between.any(0).all() and between.any(1).sum() <= 6
    assert not np.delete(changed, np.s_[int(11.9 * side) : int(13.1 * side)], axis=0).any()
    assert not changed[:, int(3 * side) : int(4 * side)].any()  # what is kept stays clean


def test_rows_have_their_own_hue_and_rows_without_a_place_no_lines(white):
    kept, owner = np.array([-1, -1]), np.full(576, -1)
    owner[[50, 51, 400]] = 0, 1, 1
    image = np.asarray(draw_overlay(white, kept, GRID, PROCESSOR, owner)).astype(int)
    plain = np.asarray(draw_overlay(white, kept, GRID, PROCESSOR)).astype(int)
    boxes = PROCESSOR.patch_boxes(image.shape[:2], GRID).astype(int)
    inside = [image[t + 8 : b - 8, l + 8 : r - 8].reshape(-1, 3) for l, t, r, b in boxes[[50, 51, 400]]]
    assert all((patch == patch[0]).all() for patch in inside)  # no line, no dot
    assert (inside[1][0] == inside[2][0]).all() and np.abs(inside[0][0] - inside[1][0]).max() > 10
    changed = (image != plain).any(2)
    for left, top, right, bottom in boxes[[50, 51, 400]]:
        changed[top - 2 : bottom + 2, left - 2 : right + 2] = False
    assert not changed.any()


def test_stages_stand_side_by_side_and_shrink(white):
    stages = {"pruner.0": np.arange(0, 576, 3), "pruner.1": np.arange(0, 576, 9)}
    sheet = draw_stages(white, stages, GRID, PROCESSOR, cuts=(8, 16))
    assert sheet.width > 2 * 672 and sheet.height > 672
    for panel, kept in (
        (sheet.crop((0, 0, 672, 672)), 192),
        (sheet.crop((sheet.width - 672, 0, sheet.width, 672)), 64),
    ):
        grey = levels(panel)
        chosen = np.arange(0, 576, 576 // kept)
        assert (grey[chosen] == 200).all() and np.median(np.delete(grey, chosen)) < 100


def test_captions_say_what_is_left_and_where(white, monkeypatch):
    said = []
    monkeypatch.setattr(
        "foveate.runtime.images.overlay._captioned", lambda panel, text: said.append(text) or panel
    )
    owner = np.where(np.arange(576) < 90, np.arange(576) % 5, -1)
    first = np.array([0, 1, 2, -1, -1])
    draw_stages(white, {"pruner": first, "pruner.0": first[:2]}, GRID, PROCESSOR, owner, cuts=(8,))
    assert said == [
        "after pruner: 5 of 576 tokens, 2 of them without a place; 87 patches merged",
        "after pruner.0, layer 8: 2 of 576 tokens",
    ]


def test_a_pruner_that_selects_needs_no_caption(white):
    kept, owner = np.array([3, 70]), np.full(576, -1)
    owner[kept] = 0, 1
    plain = draw_overlay(white, kept, GRID, PROCESSOR)
    assert draw_stages(white, {"pruner": kept}, GRID, PROCESSOR) == plain
    assert draw_stages(white, {"pruner": kept}, GRID, PROCESSOR, owner) == plain
    for other in ({"pruner.0": kept}, {"pruner": np.array([3, 70, -1])}):
        assert draw_stages(white, other, GRID, PROCESSOR, cuts=(2,)).height > plain.height


def test_captions_fit_and_leave_the_image_alone():
    narrow = np.full((1000, 150, 3), 90, np.uint8)
    sheet = np.asarray(draw_stages(narrow, {"pruner": np.array([5, -1])}, GRID, PROCESSOR))
    plain = np.asarray(draw_overlay(narrow, np.array([5]), GRID, PROCESSOR))
    assert (sheet[: len(plain)] == plain).all() and sheet.shape[1] == 150
    below = sheet[len(plain) :]
    assert below.max() > 150 and (below[:, -2:] == below[-1, -1]).all()


def test_saving(tmp_path):
    photo, kept = load_sample_images().images[0], np.arange(0, 576, 5)
    drawn = draw_overlay(photo, kept, GRID, PROCESSOR)
    save_overlay(drawn, tmp_path / "out.png")
    with Image.open(tmp_path / "out.png") as saved:
        assert saved.convert("RGB").tobytes() == drawn.tobytes()
    save_overlay(drawn, str(tmp_path / "out.jpg"))
    with pytest.raises(UserError, match=r"got the suffix '\.txt'"):
        save_overlay(drawn, tmp_path / "out.txt")
    with pytest.raises(UserError, match="No such file or directory"):
        save_overlay(drawn, tmp_path / "nowhere" / "out.png")

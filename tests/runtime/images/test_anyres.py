"""The tokens of an image: against LLaVA-NeXT's processor, and what pruners are shown of them."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from transformers import LlavaNextImageProcessorPil, LlavaNextProcessor

from foveate.runtime.images.image_file import load_image
from foveate.runtime.images.processor import image_processor
from foveate.runtime.images.token_layout import Layout


def preprocess(image, settings) -> np.ndarray:
    return image_processor(settings).preprocess(load_image(image))


def layout(size, settings, grid) -> Layout:
    return image_processor(settings).token_layout(size, grid)


def patch_boxes(size, settings, grid) -> np.ndarray:
    return image_processor(settings).patch_boxes(size, grid)


PINPOINTS = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]
SETTINGS = {
    "kind": "anyres",
    "tile": 336,
    "pinpoints": PINPOINTS,
    "resample": 3,
    "rescale": 1 / 255,
    "mean": [0.48145466, 0.4578275, 0.40821073],
    "std": [0.26862954, 0.26130258, 0.27577711],
}
GRID = (24, 24)
SHAPES = [(336, 336), (100, 400), (400, 100), (31, 24), (3000, 2001), (333, 487), (1000, 3)]


@pytest.fixture(scope="module")
def theirs() -> LlavaNextImageProcessorPil:
    size = {"height": 336, "width": 336}
    return LlavaNextImageProcessorPil(
        size={"shortest_edge": 336}, crop_size=size, image_grid_pinpoints=PINPOINTS
    )


def test_token_counts_are_the_processors(theirs) -> None:
    processor = SimpleNamespace(
        image_processor=theirs,
        patch_size=14,
        num_additional_image_tokens=1,
        _get_unpadded_features=lambda *sizes: LlavaNextProcessor._get_unpadded_features(None, *sizes),
    )
    sizes = [tuple(pair) for pair in np.random.default_rng(0).integers(8, 2500, (50, 2)).tolist()]
    for width, height in sizes + SHAPES:
        expected = LlavaNextProcessor._get_number_of_features(processor, height, width, 336, 336) - 1
        assert layout((width, height), SETTINGS, GRID).total == expected, (width, height)


@pytest.mark.parametrize("size", SHAPES, ids=str)
def test_tiles_are_the_processors(theirs, size) -> None:
    array = np.random.default_rng(1).integers(0, 256, (size[1], size[0], 3), np.uint8)
    expected = theirs(Image.fromarray(array), return_tensors="np")["pixel_values"][0]
    got = preprocess(array, SETTINGS)
    assert got.shape == expected.shape == (layout(size, SETTINGS, GRID).tiles, 3, 336, 336)
    np.testing.assert_allclose(got, expected, atol=1e-5)


@pytest.mark.parametrize("size", SHAPES, ids=str)
def test_pieces_are_rectangles_of_one_tile_that_cover_the_image(size) -> None:
    plan = layout(size, SETTINGS, GRID)
    covered = np.concatenate([piece.ravel() for piece in plan.pieces])
    assert sorted(covered) == plan.whole[0].tolist()
    assert sorted([*covered, *plan.newlines]) == list(range(plan.total))
    assert len(set(plan.order[plan.whole[0]])) == plan.whole.size
    for piece in plan.pieces:
        tile, place = np.divmod(plan.order[piece], 576)
        assert (tile == tile[0, 0]).all()
        y, x = np.divmod(place, 24)
        assert (np.diff(y, axis=0) == 1).all() and (np.diff(x, axis=1) == 1).all()
        y, x = np.divmod(plan.patch[piece], plan.columns[piece])
        assert (np.diff(y, axis=0) == 1).all() and (np.diff(x, axis=1) == 1).all()
    lines = plan.newlines - 576
    if size[1] > 3:  # of a strip as thin as that no line is left
        assert (np.diff(lines) == plan.columns[-1] + 1).all() and len(lines) == plan.rows[-1]


@pytest.mark.parametrize("size", [shape for shape in SHAPES if min(shape) > 3], ids=str)
def test_the_lines_of_tokens_lie_on_the_image(size) -> None:
    plan = layout(size, SETTINGS, GRID)
    boxes = patch_boxes(size, SETTINGS, plan.finest)
    across, down = boxes[0, 2] - boxes[0, 0], boxes[0, 3] - boxes[0, 1]
    assert across == pytest.approx(down, rel=0.1)
    assert np.abs(boxes[0, :2]).max() < max(across, down)
    assert np.abs(boxes[-1, 2:] - size).max() < max(across, down)
    kept = np.array(
        [3, plan.total - 2, plan.total - 1, -1]
    )  # of the image in one, the last of a line, a newline
    assert plan.on_finest(kept).tolist() == [-1, len(boxes) - 1, -1, -1]
    owner = np.arange(plan.total)
    assert plan.owned(owner)[plan.on_finest(kept[1:2])] == kept[1]

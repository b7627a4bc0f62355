"""Videos of Qwen2.5-VL: positions and limits. tests/end_to_end compares its images with transformers."""

from __future__ import annotations

import numpy as np
import pytest
from image_samples import WINDOWS

from foveate.engines.errors import UserError
from foveate.runtime.images.processor import image_processor
from foveate.runtime.images.token_layout import Layout


def film(size, settings, frames, interval) -> Layout:
    return image_processor(settings).video.token_layout(size, frames, interval)


def test_time_passes_in_positions():
    plan = film((280, 140), WINDOWS, 6, 0.5)
    rows, columns = plan.finest
    assert plan.steps == 3 and plan.total == 3 * rows * columns
    time, down, across = plan.positions.reshape(3, 3, rows, columns)
    assert (time == np.array([0, 2, 4])[:, None, None]).all()
    assert (down == np.arange(rows)[:, None]).all() and (across == np.arange(columns)).all()
    assert [piece.shape for piece in plan.pieces] == [(rows, columns)] * 3


def test_a_video_has_limits():
    assert film((1920, 1080), WINDOWS, 8, 0.5).total <= 4 * 768
    assert film((1920, 1080), WINDOWS, 64, 0.5).total <= 16384
    with pytest.raises(UserError, match="the video is too long"):
        film((1920, 1080), WINDOWS, 768, 0.5)

"""Fixtures of the verbs: an image in a file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def image(tmp_path: Path, pixels: np.ndarray) -> Path:
    path = tmp_path / "image.png"
    Image.fromarray(pixels).save(path)
    return path

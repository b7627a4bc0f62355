"""Images and settings that tests of images and videos share."""

from __future__ import annotations

import numpy as np

WINDOWS = {
    "kind": "windows",
    "patch": 14,
    "merge": 2,
    "frames": 2,
    "window": 4,
    "min_pixels": 3136,
    "max_pixels": 12845056,
    "video": {
        "fps": 2,
        "min_frames": 4,
        "max_frames": 768,
        "min_pixels": 100352,
        "max_pixels": 602112,
        "total_pixels": 11560550,
        "tokens_per_second": 2,
    },
}
"""Qwen2.5-VL's images and videos (``image`` in bundle.json)."""


def noise(height: int, width: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    shape = (height, width) if channels == 1 else (height, width, channels)
    return np.random.default_rng(seed + height * 7 + width).integers(0, 256, shape, dtype=np.uint8)


def smooth(height: int, width: int) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    return np.stack([127 + 120 * np.sin(x / 9 + y / 31), 255 * x / width, 255 * y / height], axis=-1).astype(
        np.uint8
    )

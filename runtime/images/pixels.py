"""Pixel values: the last step of every image processor, from grey levels to normalized numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

__all__ = ["Normalization"]


@dataclass(frozen=True)
class Normalization:
    """Settings that all kinds of images share.

    ``resample`` is Pillow's filter number for resizing; 3 is bicubic. Grey levels are multiplied by
    ``rescale``. Then ``mean`` is subtracted and the result divided by ``std``, three numbers each, unless
    they are None.
    """

    resample: Image.Resampling = Image.Resampling.BICUBIC
    rescale: float = 1.0
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None

    @classmethod
    def from_json(cls, settings: Mapping[str, Any]) -> Normalization:
        """Return the settings in those of bundle.json. A step without a setting is left out."""
        return cls(
            Image.Resampling(settings.get("resample", Image.Resampling.BICUBIC)),
            settings.get("rescale", 1.0),
            settings.get("mean"),
            settings.get("std"),
        )

    def pixel_values(self, image: Image.Image) -> np.ndarray:
        """Return rescaled and normalized pixels of an RGB image, float32 [1, 3, H, W]."""
        # A table with one value per grey level and channel gives the same float32 results as computing
        # each pixel, without large temporaries.
        table = np.arange(256, dtype=np.float64)[:, None].repeat(3, axis=1)
        table = (table * self.rescale).astype(np.float32)
        if self.mean is not None:
            mean, std = (np.array(each, np.float32) for each in (self.mean, self.std))
            table = (table - mean) / std
        pixels = np.asarray(image)  # [H, W, 3]
        return np.stack([table[:, c][pixels[:, :, c]] for c in range(3)])[None]

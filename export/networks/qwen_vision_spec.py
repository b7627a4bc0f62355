"""Sizes of the vision encoder of Qwen2.5-VL, and the inputs of its graph."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from foveate.engines.spec import FLOAT, Dim, Symbol, TensorSpec

__all__ = ["GROUP", "WindowSpec"]

GROUP = 4  # patches of a token: 2 x 2


@dataclass(frozen=True)
class WindowSpec:
    """Sizes of the vision encoder, in the place of ``export.spec.VisionSpec``.

    * ``full``: the layers that attend to the whole image.
    * ``window``: side of a window in tokens.
    * ``patch_size``: side of a patch in pixels. ``frames``: number of video frames in a patch.
    """

    hidden_size: int
    intermediate_size: int
    num_heads: int
    depth: int
    full: tuple[int, ...]
    window: int
    patch_size: int
    frames: int
    max_tokens: int
    joint_size: None = None
    max_tiles: int = 1

    @property
    def sizes(self) -> dict[str, Any]:
        """The encoder's entry in bundle.json (see ``VisionSpec``)."""
        return {
            "kind": "merged",
            "hidden": self.hidden_size,
            "intermediate": self.intermediate_size,
            "layers": self.depth,
            "patch_size": self.patch_size,
            "merge": math.isqrt(GROUP),
            "mlp_matrices": 3,
            "full_layers": len(self.full),
            "window": self.window**2 * GROUP,
            "mergers": 1,
        }

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """The inputs of the graph ``vision_encoder``."""
        windows = Symbol("windows", 1, min(81, self.max_windows), self.max_windows)
        return (
            TensorSpec("pixel_values", FLOAT, (self.tokens, GROUP, self.patch_values)),
            TensorSpec("place", "int64", (self.tokens, 2)),
            TensorSpec("slots", "int64", (windows, self.window**2)),
            TensorSpec("back", "int64", (self.tokens,)),
        )

    @property
    def patch_values(self) -> int:
        """Number of values in a patch."""
        return 3 * self.frames * self.patch_size**2

    @property
    def max_windows(self) -> int:
        """Largest number of windows: that of a strip of one token's height, one per ``window`` tokens."""
        return -(-self.max_tokens // self.window)

    @property
    def tiles(self) -> Dim:
        """The first dimension of ``projected``: an image is one tile."""
        return 1

    @property
    def tokens(self) -> Dim:
        """Visual tokens of an image."""
        return Symbol("tokens", 1, min(1296, self.max_tokens), self.max_tokens)

    @property
    def varies(self) -> bool:
        """True: images differ in their visual tokens."""
        return True

    @property
    def feature_size(self) -> int:
        """Width of ``features``: a token's four patches side by side."""
        return GROUP * self.hidden_size

    @property
    def grid(self) -> tuple[int, int]:
        """A square of the largest number of tokens."""
        side = math.isqrt(self.max_tokens)
        return side, side

    @property
    def longest_side(self) -> int:
        """Upper bound of either grid side, reached by a 1 x N strip. Both sides never reach it together."""
        return self.max_tokens

    @property
    def num_tokens(self) -> int:
        """Largest number of visual tokens of an image."""
        return self.max_tokens

    @property
    def image_tokens(self) -> int:
        """Largest number of visual tokens of an image."""
        return self.max_tokens

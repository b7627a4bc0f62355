"""A model in numbers, and the interfaces of its weights and of merging in its encoder.

The model's modules are in ``model_parts.py``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from foveate.engines.spec import FLOAT, Dim, Symbol, TensorSpec
from foveate.runtime.bundle.licence import Licence

__all__ = [
    "BundleFiles",
    "ClipFiles",
    "DecoderSpec",
    "Merging",
    "ModelSpec",
    "StartMerging",
    "VisionSpec",
    "Weights",
]


class VisionSpec(Protocol):
    """A vision encoder in numbers.

    Each kind of encoder has its own class: ``ClipVisionSpec``, and Qwen's ``WindowSpec``.
    """

    @property
    def hidden_size(self) -> int:
        """Width of a patch's hidden state."""

    @property
    def num_heads(self) -> int:
        """Number of attention heads of a layer."""

    @property
    def depth(self) -> int:
        """Number of layers that run (CLIP for LLaVA: 23 of 24)."""

    @property
    def joint_size(self) -> int | None:
        """Width of CLIP's joint image-text space; None without a CLIP checkpoint."""

    @property
    def sizes(self) -> dict[str, Any]:
        """The encoder's entry in bundle.json: its kind and the sizes that the runtime's cost estimate uses.

        ``patches`` is the number of patches of one tile.
        """

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """The inputs of the graph ``vision_encoder``."""

    @property
    def full(self) -> tuple[int, ...]:
        """The layers in which every patch attends to every other patch."""

    @property
    def feature_size(self) -> int:
        """Width of ``features``, the projector's input."""

    @property
    def tiles(self) -> Dim:
        """First dimension of the encoder's output ``projected [tiles,tokens,D]``."""

    @property
    def tokens(self) -> Dim:
        """Visual tokens of a tile: the second dimension of ``projected``."""

    @property
    def varies(self) -> bool:
        """True if images differ in their visual tokens.

        The pruner then gets the input ``view``, which says which tokens it sees.
        """

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of a tile; the largest ones where they vary."""

    @property
    def longest_side(self) -> int:
        """Largest number of rows or of columns of a tile."""

    @property
    def num_tokens(self) -> int:
        """Largest number of visual tokens of a tile."""

    @property
    def image_tokens(self) -> int:
        """Largest number of visual tokens of an image, without the newlines between their rows."""


@dataclass(frozen=True)
class ClipVisionSpec:
    """CLIP's vision tower in numbers (see ``VisionSpec``)."""

    image_size: int
    patch_size: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    depth: int
    activation: str
    layer_norm_eps: float
    joint_size: int | None = None  # width of CLIP's joint image-text space; None without a CLIP checkpoint
    max_tiles: int = 1  # largest number of tiles of one image, which are encoded together

    @property
    def sizes(self) -> dict[str, Any]:
        """The encoder's entry in bundle.json: its kind and the sizes that the runtime's cost estimate uses.

        ``patches`` is the number of patches of one tile.
        """
        return {
            "kind": "clip",
            "hidden": self.hidden_size,
            "intermediate": self.intermediate_size,
            "layers": self.depth,
            "patch_size": self.patch_size,
            "patches": self.num_tokens,
        }

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """The inputs of the graph ``vision_encoder``."""
        return (TensorSpec("pixel_values", FLOAT, (self.tiles, 3, self.image_size, self.image_size)),)

    @property
    def full(self) -> tuple[int, ...]:
        """The layers in which every patch attends to every other patch."""
        return tuple(range(self.depth))

    @property
    def feature_size(self) -> int:
        """Width of ``features``, the projector's input."""
        return self.hidden_size

    @property
    def tiles(self) -> Dim:
        """First dimension of the encoder's output ``projected [tiles,tokens,D]``."""
        return 1 if self.max_tiles == 1 else Symbol("tiles", 1, self.max_tiles, self.max_tiles)

    @property
    def tokens(self) -> Dim:
        """Visual tokens of a tile: the second dimension of ``projected``."""
        return self.num_tokens

    @property
    def varies(self) -> bool:
        """True if images differ in their visual tokens.

        The pruner then gets the input ``view``, which says which tokens it sees.
        """
        return self.max_tiles > 1

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of a tile; the largest ones where they vary."""
        side = self.image_size // self.patch_size
        return side, side

    @property
    def longest_side(self) -> int:
        """Largest number of rows or of columns of a tile."""
        return max(self.grid)

    @property
    def num_tokens(self) -> int:
        """Largest number of visual tokens of a tile."""
        return self.grid[0] * self.grid[1]

    @property
    def image_tokens(self) -> int:
        """Largest number of visual tokens of an image, without the newlines between their rows."""
        return self.num_tokens * self.max_tiles


@dataclass(frozen=True)
class DecoderSpec:
    """The language model in numbers."""

    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    rms_norm_eps: float
    rope_theta: float
    max_positions: int
    tied: bool
    attention_bias: bool = False  # queries, keys and values have biases
    # M-RoPE: the number of frequencies for time, height and width
    rope_sections: tuple[int, ...] | None = None

    @property
    def position_axes(self) -> int:
        """Number of position ids per row: 3 with M-RoPE, else 1."""
        return 1 if self.rope_sections is None else len(self.rope_sections)


@dataclass(frozen=True)
class ModelSpec:
    """Plain numbers of a model: family name, vision encoder, decoder and the vision encoder's taps.

    ``taps`` are names without a layer, e.g. ``cls_attention``. A tap with a layer takes any index below
    ``vision.depth``; negative indices count from the end, and -1 gives the features. The name ``layers`` is
    no tap: it says that a method may work in the encoder's layers (``Merging``).
    """

    family: str
    vision: VisionSpec
    decoder: DecoderSpec
    taps: tuple[str, ...]


class Weights(Protocol):
    """A source of tensors, read one at a time. Names are the paths of the modules of ``ModelParts``."""

    def __contains__(self, name: str) -> bool: ...

    def get(self, name: str) -> torch.Tensor:
        """Return the tensor in float32 or float16, in the layout of the module. Reads no other tensor."""
        ...


class Merging(Protocol):
    """An encoder merger at work on one batch of images.

    Each layer calls ``bias``, then ``merge``. ``finish`` is called behind the last layer.
    """

    def bias(self) -> torch.Tensor | None:
        """Return a float32 ``[B,1,n,n]`` that is added to this layer's attention scores, or None."""
        ...

    def merge(self, x: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        """Merge rows between attention and MLP, and return the rows that go on.

        ``x [B,n,Dv]`` are the rows, the class token first; ``key [B,H,n,dk]`` are the layer's keys.
        """
        ...

    def finish(self, features: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return rows, ``kept``, ``count`` and ``owner`` as ``Method.reduce`` does.

        ``features`` are the rows that are left behind the last layer, without the class token.
        """
        ...


StartMerging = Callable[[int, int, torch.device], Merging]
"""Starts a ``Merging``: takes the number of images, the number of patches of each, and the device."""


BundleFiles = dict[str, bytes | Path]
"""Files of a bundle: their content, or the file that is copied, by their path in the bundle."""


@dataclass(frozen=True)
class ClipFiles:
    """Files and licence that a bundle with CLIP's text encoder takes from CLIP's checkpoint."""

    files: BundleFiles  # clip_tokenizer.json, and the licence's files
    licence: dict[str, Licence]  # by role, as ``ModelParts.licence``

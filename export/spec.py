"""Parts: a model taken to pieces, and the numbers that describe it.

A family (``models/<model_type>.py``) gives Parts; ``assemble`` joins them with a method to graphs; nothing
downstream knows which family they came from.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import nn

from foveate.engines.spec import FLOAT, Dim, Symbol, TensorSpec

__all__ = ["DecoderSpec", "Merging", "ModelSpec", "Parts", "StartMerging", "VisionSpec", "Weights"]


@dataclass(frozen=True)
class VisionSpec:
    """The vision encoder in numbers. ``depth`` counts the layers that run (CLIP for LLaVA: 23 of 24).

    Another encoder's spec has the fields ``hidden_size``, ``num_heads``, ``depth``, ``joint_size``, and these properties.
    """

    image_size: int
    patch_size: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    depth: int
    activation: str
    layer_norm_eps: float
    joint_size: int | None = None  # width of the joint image-text space where a CLIP checkpoint is at hand
    max_tiles: int = 1  # square pieces of a picture that are encoded together

    @property
    def sizes(self) -> dict[str, Any]:
        """For bundle.json: its kind, and what ``runtime.costs`` counts it by; ``patches`` of a tile."""
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
        """What the graph ``vision_encoder`` takes."""
        return (TensorSpec("pixel_values", FLOAT, (self.tiles, 3, self.image_size, self.image_size)),)

    @property
    def full(self) -> tuple[int, ...]:
        """The layers in which every token sees every other."""
        return tuple(range(self.depth))

    @property
    def feature_size(self) -> int:
        """Width of ``features``, which enter the projector."""
        return self.hidden_size

    @property
    def tiles(self) -> Dim:
        """Rows of what it gives: ``projected [tiles,tokens,D]``."""
        return 1 if self.max_tiles == 1 else Symbol("tiles", 1, self.max_tiles, self.max_tiles)

    @property
    def tokens(self) -> Dim:
        """Tokens of a tile."""
        return self.num_tokens

    @property
    def varies(self) -> bool:
        """Whether pictures differ in their tokens. A pruner is told then which ones it sees (``view``)."""
        return self.max_tiles > 1

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of a tile; the most, where they vary."""
        side = self.image_size // self.patch_size
        return side, side

    @property
    def longest_side(self) -> int:
        """Rows or columns of a tile, at most."""
        return max(self.grid)

    @property
    def num_tokens(self) -> int:
        """Tokens of a tile, at most."""
        return self.grid[0] * self.grid[1]

    @property
    def picture_tokens(self) -> int:
        """Tokens of a picture, at most, without what stands between rows of them."""
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
    attention_bias: bool = False  # of queries, keys and values
    rope_sections: tuple[int, ...] | None = (
        None  # M-RoPE: how many frequencies turn with time, height and width
    )

    @property
    def position_axes(self) -> int:
        """How many numbers the position of a row is."""
        return 1 if self.rope_sections is None else len(self.rope_sections)


@dataclass(frozen=True)
class ModelSpec:
    """Plain numbers of a model: family name, vision encoder, decoder and the taps its vision encoder offers.

    ``taps`` are the offers of design section 3 without their layer, e.g. ``cls_attention``; an offer with a
    layer takes any index below ``vision.depth`` (negative ones count from the end, -1 gives the features). ``layers``
    is no tap: it says that a method may work in the encoder's layers (``Merging``).
    """

    family: str
    vision: VisionSpec
    decoder: DecoderSpec
    taps: tuple[str, ...]


class Weights(Protocol):
    """Where tensors come from, one at a time. Names are those of the Parts' modules (``nn.Module`` paths)."""

    def __contains__(self, name: str) -> bool: ...

    def get(self, name: str) -> torch.Tensor:
        """The tensor in float32 or float16, as the module of that name holds it. Reads only this tensor."""
        ...


class Merging(Protocol):
    """What a method does inside the vision encoder's layers to a batch of pictures: per layer ``bias``, then ``merge``."""

    def bias(self) -> torch.Tensor | None:
        """What is added to the attention scores of this layer, ``[B,1,n,n]`` float32; None: nothing."""
        ...

    def merge(self, x: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        """Between attention and MLP: rows ``x [B,n,Dv]``, the class token first, and keys ``[B,H,n,dk]`` -> the rows that go on."""
        ...

    def finish(self, features: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The rows that are left, without the class token -> rows, ``kept``, ``count``, ``owner`` as of ``Method.reduce``."""
        ...


StartMerging = Callable[[int, int, torch.device], Merging]
"""Begins with a batch of so many pictures, so many patches each, on a device."""


@dataclass
class Parts:
    """A model in pieces. Modules stand on the ``meta`` device: shapes without memory; ``weights`` fills them.

    ``vision(taps)`` builds the vision module for a tuple of tap names. It maps ``spec.vision.inputs`` to a
    dict with ``projected [tiles,N,D]`` and the taps. A family that offers ``layers`` takes a ``StartMerging`` besides; the
    dict then holds a pruner's outputs. ``projector()`` is its last part alone, ``features [1,N,Dv]`` to ``projected``,
    for methods that act before it. ``decoder`` has ``layers``, ``norm``, ``lm_head`` (see ``modules.py``).
    ``text_encoder``, where a CLIP checkpoint is at hand, maps ``input_ids [S,C]`` to ``clip_text [1,S,J]``. ``files``
    are what the bundle copies (``tokenizer.json``, ``clip_tokenizer.json``).
    """

    spec: ModelSpec
    vision: Callable[..., nn.Module]
    projector: Callable[[], nn.Module]
    decoder: nn.Module
    weights: Weights
    image: dict[str, Any]  # preprocessing settings for runtime.image
    prompt: dict[str, Any]  # chat format and stop ids for runtime.prompt
    licence: dict[str, Any] = field(default_factory=dict)  # by role, see runtime.licence
    generation: dict[str, Any] = field(default_factory=dict)  # defaults of answers, see export.generation
    files: dict[str, Any] = field(default_factory=dict)  # name in the bundle -> path
    text_encoder: nn.Module | None = None
    source: dict[str, str] = field(default_factory=dict)  # model, revision, load format: for bundle.json

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

__all__ = ["DecoderSpec", "Merging", "ModelSpec", "Parts", "StartMerging", "VisionSpec", "Weights"]


@dataclass(frozen=True)
class VisionSpec:
    """The vision encoder in numbers. ``depth`` counts the layers that run (CLIP for LLaVA: 23 of 24)."""

    image_size: int
    patch_size: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    depth: int
    activation: str
    layer_norm_eps: float
    joint_size: int | None = None  # width of the joint image-text space where a CLIP checkpoint is at hand

    @property
    def grid(self) -> tuple[int, int]:
        side = self.image_size // self.patch_size
        return side, side

    @property
    def num_tokens(self) -> int:
        return self.grid[0] * self.grid[1]


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
    attention_bias: bool = False


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

    ``vision(taps)`` builds the vision module for a tuple of tap names. It maps ``pixel_values [1,3,H,W]`` to a
    dict with ``projected [1,N,D]`` and the taps. A family that offers ``layers`` takes a ``StartMerging`` besides; the
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
    files: dict[str, Any] = field(default_factory=dict)  # name in the bundle -> path
    text_encoder: nn.Module | None = None
    source: dict[str, str] = field(default_factory=dict)  # model, revision, load format: for bundle.json

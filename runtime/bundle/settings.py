"""Settings in ``bundle.json`` that the runtime's image, text and generation code reads: what they must hold.

The code takes them as JSON objects, in which an absent key has a meaning of its own. ``Manifest`` checks
them against these classes when it is read.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

__all__ = [
    "AnyresImage",
    "ClipImage",
    "GenerationSettings",
    "ImageSettings",
    "PromptFormat",
    "Reasoning",
    "Strip",
    "VideoLimits",
    "WindowsImage",
]

Colour = tuple[float, float, float]


@dataclass(frozen=True)
class ClipImage:
    """An image of one size, as CLIP's image processor makes it. Sizes are [height, width] in pixels."""

    kind: Literal["clip"]
    size: tuple[int, int]
    shortest_edge: int | None = None
    resize: tuple[int, int] | None = None
    crop: tuple[int, int] | None = None
    resample: int = 3
    rescale: float = 1.0
    mean: Colour | None = None
    std: Colour | None = None


@dataclass(frozen=True)
class AnyresImage:
    """LLaVA-NeXT's images: one tile of the whole image, and tiles of a canvas.

    ``tile`` is the side of a tile in pixels, ``pinpoints`` are [height, width] of the canvases.
    """

    kind: Literal["anyres"]
    tile: int
    pinpoints: tuple[tuple[int, int], ...]
    resample: int = 3
    rescale: float = 1.0
    mean: Colour | None = None
    std: Colour | None = None


@dataclass(frozen=True)
class VideoLimits:
    """Limits of a video: frames per second and in all, pixels of a frame and of all time steps together."""

    fps: float
    min_frames: int
    max_frames: int
    min_pixels: int
    max_pixels: int
    total_pixels: int
    tokens_per_second: float


@dataclass(frozen=True)
class WindowsImage:
    """Qwen2.5-VL's images of any size, in patches, window by window.

    ``patch`` is in pixels, ``merge`` in patches, ``window`` in visual tokens. A patch has ``frames`` frames.
    """

    kind: Literal["windows"]
    patch: int
    merge: int
    frames: int
    window: int
    min_pixels: int
    max_pixels: int
    resample: int = 3
    rescale: float = 1.0
    mean: Colour | None = None
    std: Colour | None = None
    video: VideoLimits | None = None


ImageSettings = ClipImage | AnyresImage | WindowsImage


@dataclass(frozen=True)
class Strip:
    """Characters that are removed from both sides of a text; null: every kind of blank. Absent: none.

    ``whole``: from all content of a turn together, not from each text.
    """

    left: str | None = None
    right: str | None = None
    whole: bool = False


@dataclass(frozen=True)
class Reasoning:
    """Removal of everything up to the last ``end`` of a text. The rest is stripped as by ``Strip``."""

    end: str
    left: str | None = None
    right: str | None = None


@dataclass(frozen=True)
class PromptFormat:
    """The pieces of a chat template (``runtime.text.chat_format``), and the ids of special tokens.

    Absent ``order``: images between words are refused.
    """

    roles: dict[str, str]
    image: str
    generation: str
    image_token: str
    image_token_id: int
    stop_ids: tuple[int, ...]
    before: str = ""
    after_text: str = ""
    end: str = ""
    closing: dict[str, str] = field(default_factory=dict)
    order: Literal["given", "images first"] | None = None
    strip: dict[str, Strip] = field(default_factory=dict)
    reasoning: dict[str, Reasoning] = field(default_factory=dict)
    limits: tuple[str, ...] = ()
    bos_id: int | None = None
    suffix_ids: tuple[int, ...] = ()
    pad_id: int | None = None
    video_token_id: int | None = None


@dataclass(frozen=True)
class GenerationSettings:
    """The checkpoint's settings of answers (``runtime.llm.generation``). Absent ones have no effect."""

    repetition_penalty: float = 1.0
    no_repeat_ngram_size: int = 0
    suppress_tokens: tuple[int, ...] = ()
    begin_suppress_tokens: tuple[int, ...] = ()
    min_new_tokens: int = 0
    min_length: int = 0
    max_new_tokens: int | None = None
    max_length: int | None = None
    stop_strings: tuple[str, ...] = ()
    sample: dict[str, object] = field(default_factory=dict)

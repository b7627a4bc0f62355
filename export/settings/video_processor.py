"""A bundle's video settings: the number of frames and their size. ``runtime/images/processor.py`` reads them.

The source is the first of ``video_processor`` in ``processor_config.json`` (transformers 5),
``video_preprocessor_config.json`` (transformers 4.52 and later) and ``preprocessor_config.json`` (older).

For checkpoints with the oldest form only, transformers gives frames the size of images. We use the values of
the authors' own tool, which their instructions put in front of transformers (qwen-vl-utils: 128 to 768 tokens
per frame, 2 frames per second). As in that tool, all frames together have at most 0.9 of the pixels that the
model may see.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from foveate.engines.errors import UserError
from foveate.export.checkpoints.directory import Source

__all__ = ["VideoSettings", "video_settings"]

_KINDS = ("Qwen2VLVideoProcessor", "Qwen2_5_VLVideoProcessor")
_DEFAULTS = {"fps": 2, "min_frames": 4, "max_frames": 768}
_SIZE = {"shortest_edge": 128 * 28 * 28, "longest_edge": 768 * 28 * 28}
"""Size of a frame in pixels: the defaults of transformers' Qwen2VLVideoProcessor and of qwen-vl-utils."""
_MOST_TOKENS = 128000


@dataclass(frozen=True)
class VideoSettings:
    """The video settings: ``limits`` are fps, frames and pixels.

    ``config`` is the checkpoint's own video processor, or None if it has none.
    """

    limits: dict[str, Any]
    config: dict[str, Any] | None


def video_settings(source: Source, cell: int, high: int) -> VideoSettings:
    """Return the settings for visual tokens of ``cell`` pixels and images of at most ``high`` pixels.

    Raises UserError for a video processor of another kind and for settings that are not supported.
    """
    own = _own(source)
    oldest = {k: v for k, v in (source.json("preprocessor_config.json") or {}).items() if k in _DEFAULTS}
    config = oldest if own is None else own
    config = {key: value for key, value in config.items() if value is not None}
    _refuse(config, source.label)
    size = config.get("size", _SIZE)
    low = config.get("min_pixels", size.get("shortest_edge"))
    most = config.get("max_pixels", size.get("longest_edge"))
    if not low or not most:
        raise UserError(
            f"{source.label}: cannot tell how large a video's frames may be "
            f"| got size {size}, expected shortest_edge and longest_edge, in pixels "
            "| repair size in the video processor's config"
        )
    total = min(high, config.get("max_video_tokens", _MOST_TOKENS) * cell)
    limits = {key: config.get(key, value) for key, value in _DEFAULTS.items()}
    limits |= {
        "min_pixels": min(low, high // 2),
        "max_pixels": min(most, high),
        "total_pixels": total * 9 // 10,
    }
    return VideoSettings(limits, None if own is None else config)


def _own(source: Source) -> dict[str, Any] | None:
    nested = (source.json("processor_config.json") or {}).get("video_processor")
    return source.json("video_preprocessor_config.json") if nested is None else nested


def _refuse(config: dict[str, Any], label: str) -> None:
    kind = config.get("video_processor_type", _KINDS[0])
    if kind not in _KINDS:
        raise UserError(
            f"{label}: this video processor is not supported | got {kind}, expected {_KINDS[0]} "
            "| use a checkpoint with Qwen2-VL's video processing"
        )
    if "num_frames" in config:
        raise UserError(
            f"{label}: the video processor's num_frames is not supported "
            f"| got {config['num_frames']}, expected null | set fps, min_frames and max_frames"
        )

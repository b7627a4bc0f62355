"""Videos: a file goes in, frames at even distances in time come out. Files are read with OpenCV.

Which frames: as Hugging Face's video processor of Qwen2-VL takes them at so many frames per second, an even number.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from foveate.engines.errors import UserError

__all__ = ["Video", "load_video", "sampled"]


@dataclass(frozen=True, eq=False)
class Video:
    """``frames`` of one size, upright, in mode RGB, ``interval`` seconds apart."""

    frames: tuple[Image.Image, ...]
    interval: float

    @property
    def size(self) -> tuple[int, int]:
        """Width and height."""
        return self.frames[0].size


def load_video(path: str | PathLike[str], settings: dict[str, Any]) -> Video:
    """Frames of the file at ``path``. ``settings``: ``frames`` (of a patch), ``fps``, ``min_frames`` and ``max_frames``, as
    ``runtime.image`` has them. Raises UserError without OpenCV, and for what is no video.
    """
    try:
        import cv2
    except ModuleNotFoundError as error:
        if error.name != "cv2":
            raise
        raise UserError(
            "videos are read with OpenCV | it is not installed | pip install 'foveate[video]'"
        ) from error
    if not Path(path).is_file():
        raise UserError(f"cannot read the video {path} | no such file | give the path of a video file")
    file = cv2.VideoCapture(str(path))
    try:
        total, rate = int(file.get(cv2.CAP_PROP_FRAME_COUNT)), file.get(cv2.CAP_PROP_FPS)
        if not file.isOpened() or total < 1 or not rate > 0:
            raise UserError(
                f"cannot read the video {path} | it is no video in a format that OpenCV knows | convert it to MP4"
            )
        wanted = sampled(total, rate, settings)
        frames = _chosen(file, wanted)
    finally:
        file.release()
    if not frames:
        raise UserError(f"cannot read the video {path} | it is damaged or cut short | copy or save it again")
    frames += frames[-1:] * (len(wanted) - len(frames))  # where its head promises more than it holds
    return Video(tuple(frames), total / rate / len(frames))


def sampled(total: int, rate: float, settings: dict[str, Any]) -> np.ndarray:
    """Numbers of the frames that are shown of ``total`` at ``rate`` per second: int64, ascending."""
    whole = settings["frames"]
    most = min(settings["max_frames"], total) // whole * whole
    count = min(max(total / rate * settings["fps"], settings["min_frames"]), most, total)
    count = max(math.floor(count / whole) * whole, 1)
    return (np.arange(count) * (total / count)).astype(np.int64)


def _chosen(file: Any, wanted: np.ndarray) -> list[Image.Image]:
    """The ``wanted`` frames of an open video, as many as it holds. Read in order: seeking is not exact in every format."""
    frames: list[Image.Image] = []
    for number in range(int(wanted[-1]) + 1):
        if not file.grab():
            break
        if number == wanted[len(frames)]:
            there, pixels = file.retrieve()
            if not there:
                break
            frames.append(Image.fromarray(np.ascontiguousarray(pixels[:, :, ::-1])))  # BGR
    return frames

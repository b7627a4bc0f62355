"""Videos: frames at equal distances in time, read from a file with OpenCV.

A raw stream (.h264, .mjpeg) has no header with the number of its frames. They are counted by reading it once
more.

The choice of frames is that of Hugging Face's video processor of Qwen2-VL: a number of frames per second, in
all an even number.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from os import PathLike
from typing import Any

import numpy as np
from PIL import Image

from foveate.engines.errors import UserError, install_extra
from foveate.runtime.images.image_source import short
from foveate.runtime.input_file import PIPE, fault

__all__ = ["Video", "VideoSampling", "load_video", "sampled"]

_RATE = 25.0  # frames per second of a stream that gives no rate, as in FFmpeg
_MOST_RATE = 1000.0  # a larger number is a time base, not a frame rate


@dataclass(frozen=True, eq=False)
class Video:
    """Frames of a video: ``frames`` of one size, upright, in mode RGB, ``interval`` seconds apart."""

    frames: tuple[Image.Image, ...]
    interval: float

    @property
    def size(self) -> tuple[int, int]:
        """Width and height."""
        return self.frames[0].size


@dataclass(frozen=True)
class VideoSampling:
    """Choice of a video's frames: ``fps`` per second, from ``min_frames`` to ``max_frames`` in all.

    Their number is a multiple of ``frames``, the frames per patch.
    """

    frames: int
    fps: float
    min_frames: int
    max_frames: int

    @classmethod
    def from_json(cls, settings: Mapping[str, Any]) -> VideoSampling:
        """Return the sampling in the image settings of bundle.json (``images.windows``)."""
        video = settings["video"]
        return cls(settings["frames"], video["fps"], video["min_frames"], video["max_frames"])


def load_video(path: str | PathLike[str], sampling: VideoSampling) -> Video:
    """Return frames of the file at ``path``.

    Raises UserError if OpenCV is not installed, or if the file is not a video.
    """
    try:
        import cv2
    except ModuleNotFoundError as error:
        if error.name != "cv2":
            raise
        raise UserError(
            f"videos are read with OpenCV | it is not installed | {install_extra('video')}"
        ) from error
    if got := fault(path):
        got += ", expected a file, since it may be read twice" if got == PIPE else ""
        raise UserError(f"cannot read the video {short(path)} | {got} | give the path of a video file")
    with _opened(cv2, path) as file:
        total, rate = int(file.get(cv2.CAP_PROP_FRAME_COUNT)), file.get(cv2.CAP_PROP_FPS)
    if total < 1:
        with _opened(cv2, path) as file:
            total = sum(1 for _ in iter(file.grab, False))
    if total < 1:
        raise _no_video(path)
    rate = rate if 0 < rate <= _MOST_RATE else _RATE
    wanted = sampled(total, rate, sampling)
    with _opened(cv2, path) as file:
        frames = _chosen(file, wanted)
    if not frames:
        raise UserError(
            f"cannot read the video {short(path)} | it is damaged or cut short | copy or save it again"
        )
    frames += frames[-1:] * (len(wanted) - len(frames))  # the header may promise more frames than there are
    return Video(tuple(frames), total / rate / len(frames))


@contextlib.contextmanager
def _opened(cv2: Any, path: str | PathLike[str]) -> Iterator[Any]:
    file = cv2.VideoCapture(str(path))
    try:
        if not file.isOpened():
            raise _no_video(path)
        yield file
    finally:
        file.release()


def _no_video(path: str | PathLike[str]) -> UserError:
    return UserError(
        f"cannot read the video {short(path)} | it is no video in a format that OpenCV knows "
        "| convert it to MP4"
    )


def sampled(total: int, rate: float, sampling: VideoSampling) -> np.ndarray:
    """Return the numbers of the frames that are shown: int64, ascending.

    The video has ``total`` frames at ``rate`` per second.
    """
    whole = sampling.frames
    most = min(sampling.max_frames, total) // whole * whole
    count = min(max(total / rate * sampling.fps, sampling.min_frames), most, total)
    count = max(math.floor(count / whole) * whole, 1)
    return (np.arange(count) * (total / count)).astype(np.int64)


def _chosen(file: Any, wanted: np.ndarray) -> list[Image.Image]:
    """Return the ``wanted`` frames of an open video, or as many as it has.

    All frames are read in order, because seeking is not exact in every format.
    """
    frames: list[Image.Image] = []
    for number in range(int(wanted[-1]) + 1):
        if not file.grab():
            break
        if number == wanted[len(frames)]:
            there, pixels = file.retrieve()
            if not there:
                break
            frames.append(Image.fromarray(np.ascontiguousarray(pixels[:, :, ::-1])))  # BGR to RGB
    return frames

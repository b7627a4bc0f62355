"""Cameras, network streams and video files, frame after frame, through OpenCV: the extra ``video``.

OpenCV because its wheel for aarch64 reads V4L2 cameras, RTSP and files, on every Python; PyAV's (17.1, 18.1) has no V4L2.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

from foveate.engines.errors import UserError

__all__ = ["Capture", "camera", "file"]

_TIMEOUT_MS = 5000  # of opening and reading a stream that went silent


class Capture:
    """What OpenCV opens: ``where`` is the number of a /dev/video*, a URL or a path. A ``frames.Source``."""

    def __init__(self, where: int | str, live: bool) -> None:
        self.where, self.live = where, live
        self.name = f"camera {where}" if isinstance(where, int) else str(where)

    @contextlib.contextmanager
    def open(self) -> Iterator[Iterator[tuple[float, np.ndarray]]]:
        """Raises OSError when nothing opens."""
        if isinstance(self.where, int):
            video = cv2.VideoCapture(self.where, cv2.CAP_V4L2)
        else:
            limits = [
                cv2.CAP_PROP_OPEN_TIMEOUT_MSEC,
                _TIMEOUT_MS,
                cv2.CAP_PROP_READ_TIMEOUT_MSEC,
                _TIMEOUT_MS,
            ]
            video = cv2.VideoCapture(self.where, cv2.CAP_FFMPEG, limits)
        try:
            if not video.isOpened():
                raise OSError("cannot be opened")
            yield _frames(video)
        finally:
            video.release()


def _frames(video: cv2.VideoCapture) -> Iterator[tuple[float, np.ndarray]]:
    while True:
        try:
            there, pixels = video.read()
        except cv2.error as error:
            raise OSError(str(error).strip()) from error
        if not there:
            return
        yield video.get(cv2.CAP_PROP_POS_MSEC) / 1e3, cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)


def camera(where: str) -> Capture:
    """A number (0 is /dev/video0), a device's path, or a URL such as rtsp://... . It need not be there yet."""
    if where.startswith("/dev/video") and where[10:].isdigit():
        where = where[10:]
    if where.isdigit():
        return Capture(int(where), live=True)
    if "://" not in where:
        raise UserError(
            f"no camera {where} | expected a number, /dev/videoN or a URL | --video for a file", code=2
        )
    return Capture(where, live=True)


def file(path: str) -> Capture:
    """A video file, played at its own speed. Raises UserError when it is not there or no video."""
    if not Path(path).is_file():
        raise UserError(
            f"cannot read the video {path} | no such file | give the path of a video file", code=2
        )
    capture = Capture(path, live=False)
    try:
        with capture.open():
            return capture
    except OSError as error:
        raise UserError(
            f"cannot read the video {path} | OpenCV cannot open it | give another format"
        ) from error

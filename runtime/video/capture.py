"""Cameras, network streams and video files, frame after frame, through OpenCV: the extra ``video``.

OpenCV because its wheel for aarch64 reads V4L2 cameras, RTSP and files, on every Python; PyAV's (17.1, 18.1) has no V4L2.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

from foveate.engines.errors import UserError
from foveate.runtime.images.image_source import short
from foveate.runtime.input_file import fault

__all__ = ["Capture", "camera", "file"]

_TIMEOUT_MS = 5000  # of opening and reading a stream that went silent
_DEVICES = Path("/dev")
_NAMES = Path("/sys/class/video4linux")  # videoN/name says what the camera calls itself


class Capture:
    """What OpenCV opens: ``where`` is the number of a /dev/video*, a link to one, a URL or a file. A ``frames.Source``."""

    def __init__(self, where: int | str | Path, live: bool) -> None:
        """A ``Path`` is a link, which is followed anew at every opening: where it leads changes when a camera is plugged in."""
        self.where, self.live = where, live
        self.name = str(where) if isinstance(where, str) else f"camera {where}"

    @contextlib.contextmanager
    def open(self) -> Iterator[Iterator[tuple[float, np.ndarray]]]:
        """Raises OSError when nothing opens."""
        if isinstance(self.where, str):
            timeouts = (cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, cv2.CAP_PROP_READ_TIMEOUT_MSEC)
            limits = [value for name in timeouts for value in (name, _TIMEOUT_MS)]
            video = cv2.VideoCapture(self.where, cv2.CAP_FFMPEG, limits)
        else:
            number = self.where if isinstance(self.where, int) else _number(self.where)
            video = cv2.VideoCapture(number, cv2.CAP_V4L2)
        try:
            if not video.isOpened():
                why = "" if isinstance(self.where, str) else _why_not(number)
                raise OSError("cannot be opened" + why)
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
    """A camera by its number (0 is /dev/video0), its path or a link to it (/dev/v4l/by-id/...), a serial number or another part of
    its name in /dev/v4l/by-id, or a URL such as rtsp://... .

    A number, a path in /dev and a URL need not be there yet. Raises UserError for what can be no camera.
    """
    if where.isdigit():
        return Capture(int(where), live=True)
    if "://" in where:
        return Capture(where, live=True)
    path = Path(where)
    if (number := _number_of(path)) is not None:
        return Capture(number, live=True)
    if path.is_relative_to(_DEVICES) or _number_of(Path(os.path.realpath(path))) is not None:
        return Capture(path, live=True)
    if "/" in where or path.is_file():
        raise UserError(
            f"no camera {short(where)} | expected a number, a path in /dev, a serial number or a URL; {_there()} "
            "| name one of them, or --video for a file",
            code=2,
        )
    return Capture(_of_serial(where), live=True)


def file(path: str) -> Capture:
    """A video file, played at its own speed. Raises UserError when it is not there or no video."""
    if got := fault(path):
        raise UserError(
            f"cannot read the video {short(path)} | {got} | give the path of a video file", code=2
        )
    capture = Capture(path, live=False)
    try:
        with capture.open():
            return capture
    except OSError as error:
        raise UserError(
            f"cannot read the video {short(path)} | OpenCV cannot open it | give another format"
        ) from error


def _number_of(path: Path) -> int | None:
    """The N of /dev/videoN."""
    found = re.fullmatch(r"video(\d+)", path.name) if path.parent == _DEVICES else None
    return int(found[1]) if found else None


def _number(link: Path) -> int:
    """Which camera ``link`` leads to now. Raises OSError."""
    if (number := _number_of(Path(os.path.realpath(link)))) is not None:
        return number
    got = "leads to no camera" if link.exists() else "is not there"
    raise OSError(f"{link} {got}; {_there()}")


def _of_serial(part: str) -> Path:
    """The link in /dev/v4l/by-id with ``part`` in its name. A camera has several: index0 is its picture."""
    folder = _DEVICES / "v4l" / "by-id"
    links = [link for link in sorted(folder.glob("*")) if part in link.name]
    links = [link for link in links if link.name.endswith("-index0")] or links
    if len(links) == 1:
        return links[0]
    got = f"it stands in {', '.join(link.name for link in links)}" if links else _there()
    raise UserError(
        f"no camera {short(part)} | expected a number, a path in /dev, a serial number or a URL; {got} | name one of them, or --video for a file",
        code=2,
    )


def _why_not(number: int) -> str:
    device = _DEVICES / f"video{number}"
    if device.exists() and not os.access(device, os.R_OK | os.W_OK):
        return f": permission denied for {device}; add the user to the group that owns it (video)"
    return f"; {_there()}"


def _there() -> str:
    """The cameras of this machine, for people."""
    found = []
    for device in sorted(_DEVICES.glob("video*"), key=lambda each: (len(each.name), each.name)):
        name = _NAMES / device.name / "name"
        found.append(
            f"{device} ({name.read_text(errors='replace').strip()})" if name.is_file() else str(device)
        )
    return f"there are {', '.join(found)}" if found else f"there is no {_DEVICES}/video*"

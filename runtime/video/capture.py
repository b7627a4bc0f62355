"""Cameras, network streams and video files, read frame by frame through OpenCV (the extra ``video``).

We use OpenCV because its wheel for aarch64 reads V4L2 cameras, RTSP and files on every Python version. PyAV's
wheels (17.1, 18.1) have no V4L2.
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

_TIMEOUT_MS = 5000  # for opening a stream, and for reading one that went silent
_DEVICES = Path("/dev")
_NAMES = Path("/sys/class/video4linux")  # videoN/name holds the camera's own name


class Capture:
    """A source of frames that OpenCV opens (``latest_frame.Source``).

    ``where`` is the number of a /dev/video*, a link to one, a URL or a file.
    """

    def __init__(self, where: int | str | Path, live: bool) -> None:
        """Store ``where``.

        A ``Path`` is a link, which is resolved at each opening, since a replugged camera changes it.
        """
        self.where, self.live = where, live
        self.name = str(where) if isinstance(where, str) else f"camera {where}"

    @contextlib.contextmanager
    def open(self) -> Iterator[Iterator[tuple[float, np.ndarray]]]:
        """Open the source and yield its frames. Raises OSError if it cannot be opened."""
        if isinstance(self.where, str):
            timeouts = (cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, cv2.CAP_PROP_READ_TIMEOUT_MSEC)
            limits = [value for name in timeouts for value in (name, _TIMEOUT_MS)]
            video = cv2.VideoCapture(self.where, cv2.CAP_FFMPEG, limits)
        else:
            number = self.where if isinstance(self.where, int) else _number(self.where)
            if not (_DEVICES / f"video{number}").exists():  # OpenCV would print warnings of its own
                raise OSError(f"cannot be opened; {_there()}")
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
    """Return a camera.

    ``where`` is its number (0 is /dev/video0), its path or a link to it (/dev/v4l/by-id/...), a serial number
    or another part of its name in /dev/v4l/by-id, or a URL such as rtsp://... . A number, a path in /dev and
    a URL are tried when the source is opened. Raises UserError for anything that cannot be a camera.
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
            f"no camera {short(where)} | expected a number, a path in /dev, a serial number or a URL; "
            f"{_there()} | name one of them, or --video for a file",
            code=2,
        )
    return Capture(_of_serial(where), live=True)


def file(path: str) -> Capture:
    """Return a video file as a source, played at its own speed.

    Raises UserError if it is missing or not a video.
    """
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
    """Return the N of /dev/videoN, or None for another path."""
    found = re.fullmatch(r"video(\d+)", path.name) if path.parent == _DEVICES else None
    return int(found[1]) if found else None


def _number(link: Path) -> int:
    """Return the number of the camera that ``link`` leads to now. Raises OSError if it leads to none."""
    if (number := _number_of(Path(os.path.realpath(link)))) is not None:
        return number
    got = "leads to no camera" if link.exists() else "is not there"
    raise OSError(f"{link} {got}; {_there()}")


def _of_serial(part: str) -> Path:
    """Return the link in /dev/v4l/by-id whose name contains ``part``.

    A camera has several links; the one that ends in index0 gives its image.
    """
    folder = _DEVICES / "v4l" / "by-id"
    links = [link for link in sorted(folder.glob("*")) if part in link.name]
    links = [link for link in links if link.name.endswith("-index0")] or links
    if len(links) == 1:
        return links[0]
    got = f"it is part of {', '.join(link.name for link in links)}" if links else _there()
    raise UserError(
        f"no camera {short(part)} | expected a number, a path in /dev, a serial number or a URL; {got} "
        "| name one of them, or --video for a file",
        code=2,
    )


def _why_not(number: int) -> str:
    device = _DEVICES / f"video{number}"
    if device.exists() and not os.access(device, os.R_OK | os.W_OK):
        return f": permission denied for {device}; add the user to the group that owns it (video)"
    return f"; {_there()}"


def _there() -> str:
    """Return a list of this machine's cameras, as text for people."""
    found = []
    for device in sorted(_DEVICES.glob("video*"), key=lambda each: (len(each.name), each.name)):
        name = _NAMES / device.name / "name"
        found.append(
            f"{device} ({name.read_text(errors='replace').strip()})" if name.is_file() else str(device)
        )
    return f"there are {', '.join(found)}" if found else f"there is no {_DEVICES}/video*"

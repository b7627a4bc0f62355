"""Sources of images: a path, a pipe, the standard input, a data URL, an http(s) URL, bytes, or an open file.

``read_once`` turns each of these into something that can be opened repeatedly. Sources that can be read only
once (a pipe, a download) are read into memory, up to ``MOST_BYTES``. ``images.image_file`` decodes the
result.
"""

from __future__ import annotations

import base64
import binascii
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import unquote_to_bytes

import numpy as np
from PIL import Image

from foveate.engines.errors import UserError
from foveate.runtime.input_file import PIPE, fault

__all__ = [
    "MOST_BYTES",
    "STANDARD_INPUT",
    "EncodedImage",
    "ImageSource",
    "ReadableImage",
    "from_command_line",
    "read_once",
    "short",
]

MOST_BYTES = 256 * 2**20
"""The largest image that is read into memory, in bytes.

An image of 89 megapixels, Pillow's limit, has 255 MiB without compression.
"""

STANDARD_INPUT = ("-", "/dev/stdin")
"""Names by which ``--image`` means the standard input."""

_LONGEST_NAME = 200  # longest name shown in a message, in characters


@dataclass(frozen=True)
class EncodedImage:
    """The content of an image file in memory. ``name`` is its origin, for messages."""

    data: bytes = field(repr=False)
    name: str


ImageSource = str | PathLike[str] | bytes | BinaryIO | EncodedImage | Image.Image | np.ndarray
"""An image as a caller gives it.

A str is a path, a data URL or an http(s) URL. An array is uint8 [H, W, 3] (RGB), [H, W, 4] (RGBA), [H, W, 1]
or [H, W].
"""


ReadableImage = str | PathLike[str] | EncodedImage | Image.Image | np.ndarray
"""An image that can be opened repeatedly: a file, its content, or an image in memory."""


def from_command_line(names: Sequence[str], *, allow_url: bool = False) -> list[ImageSource]:
    """Return ``read_once`` of each value of ``--image``. "-" is the standard input, which holds one image."""
    inputs = [name for name in names if name in STANDARD_INPUT]
    if len(inputs) > 1:
        raise UserError(
            f"the standard input holds one image | got {' and '.join(f'--image {name}' for name in inputs)} "
            "| give the others as files or, in bash, as <(COMMAND)",
            code=2,
        )
    return [
        _of_standard_input() if name in STANDARD_INPUT else read_once(name, allow_url=allow_url)
        for name in names
    ]


def _of_standard_input() -> EncodedImage:
    if sys.stdin is None or sys.stdin.isatty():
        got = "closed" if sys.stdin is None else "a terminal"
        raise UserError(
            f"cannot read an image from the standard input | it is {got}, expected a pipe or a file "
            "| foveate run BUNDLE PROMPT --image - < IMAGE",
            code=2,
        )
    return _encoded(_read(sys.stdin.buffer, "standard input"), "standard input")


def read_once(source: ImageSource, *, allow_url: bool = False) -> ReadableImage:
    """Return ``source`` in a form that can be opened repeatedly, or as it is if it has such a form already.

    Pipes, devices of process substitution, open files, bytes and URLs become an ``EncodedImage``. A pipe is
    read until its other end closes. An http(s) URL is downloaded only with ``allow_url``. Raises UserError
    for a source that is missing, empty, larger than ``MOST_BYTES``, or unreadable.
    """
    if isinstance(source, (EncodedImage, Image.Image, np.ndarray)):
        return source
    if isinstance(source, (bytes, bytearray, memoryview)):
        data = bytes(source)
        return _encoded(data, f"of {len(data)} bytes")
    if hasattr(source, "read"):
        name = str(getattr(source, "name", "an open file"))
        return _encoded(_read(source, name), name)
    if not isinstance(source, (str, PathLike)):
        raise UserError(
            f"this is no image | got {type(source).__name__}, expected a path, a URL, bytes, an open file, "
            "a PIL image or a uint8 array | give one of these",
            code=2,
        )
    if not isinstance(source, str):
        return _of_path(source)
    scheme = re.match(r"(data|https?|file|ftp):", source, re.IGNORECASE)
    if scheme is None:
        return _of_path(source)
    if scheme[1].lower() == "data":
        return _of_data_url(source)
    return _of_url(source, scheme[1].lower(), allow_url)


def short(name: object) -> str:
    """Return a name for messages, shortened in the middle if it is very long."""
    text = str(name)
    return text if len(text) <= _LONGEST_NAME else f"{text[:120]}...{text[-60:]} ({len(text)} characters)"


def _of_path(source: str | PathLike[str]) -> str | PathLike[str] | EncodedImage:
    if source == "":  # a Path would take it for the current directory
        raise _unreadable('""', "the name is empty", "give the path of an image file")
    path, name = Path(source), short(source)
    got = fault(path)
    if got is None:
        return source
    if got != PIPE:
        raise _unreadable(
            name, got, "copy or save it again" if "empty" in got else "give the path of an image file"
        )
    try:
        with path.open("rb") as pipe:
            return _encoded(_read(pipe, name), name)
    except OSError as error:
        raise _unreadable(name, str(error.strerror).lower(), "make it readable") from error


def _of_data_url(url: str) -> EncodedImage:
    """Decode ``data:[type][;base64],content``. The type is ignored: the content decides."""
    head, comma, body = url.partition(",")
    name = f"{head[:60]},... ({len(url)} characters)"
    if not comma:
        raise _unreadable(
            f"{url[:60]}...", "there is no comma in the data URL", "write data:image/png;base64,CONTENT"
        )
    try:
        data = unquote_to_bytes(body)
    # lone surrogates: bytes that the shell passed on and that are not UTF-8
    except UnicodeEncodeError as error:
        raise _unreadable(
            name, "it holds bytes that are not UTF-8", "write them as %FF, or in base64"
        ) from error
    if head.lower().endswith(";base64"):
        data = b"".join(data.split())
        try:
            data = base64.b64decode(data + b"=" * (-len(data) % 4), validate=True)
        except binascii.Error as error:
            raise _unreadable(
                name, f"its base64 is damaged ({error})", "encode it again, with base64 -w0"
            ) from error
    return _encoded(data, name)


def _of_url(url: str, scheme: str, allow_url: bool) -> EncodedImage:
    if scheme not in ("http", "https"):
        raise _unreadable(
            short(url), f"got a {scheme} URL, expected a path, http or https", "give the path of the file"
        )
    from foveate.runtime.images.image_url import download, without_secrets

    name = short(without_secrets(url))
    if not allow_url:
        raise UserError(
            f"the image {name} is on the network | nothing is downloaded unless it is allowed | "
            "add --allow-url (in Python: read_once(URL, allow_url=True)), or download it first",
            code=2,
        )
    return _encoded(download(url, MOST_BYTES), name)


def _read(stream: Any, name: str) -> bytes:
    parts, size = [], 0
    try:
        while chunk := stream.read(2**20):
            if not isinstance(chunk, bytes):
                raise _unreadable(name, "the file is open as text", 'open it with mode "rb"')
            parts.append(chunk)
            size += len(chunk)
            if size > MOST_BYTES:
                raise UserError(
                    f"the image {name} is too large | expected at most {MOST_BYTES // 2**20} MiB "
                    "| scale it down first"
                )
    except (OSError, ValueError) as error:  # ValueError: the file is closed
        raise _unreadable(name, str(error), "open it again") from error
    return b"".join(parts)


def _encoded(data: bytes, name: str) -> EncodedImage:
    if not data:
        raise _empty(name)
    if len(data) > MOST_BYTES:
        raise UserError(
            f"the image {name} is too large | expected at most {MOST_BYTES // 2**20} MiB "
            "| scale it down first"
        )
    return EncodedImage(data, name)


def _empty(name: str) -> UserError:
    return _unreadable(name, "the file is empty (0 bytes)", "copy or save it again")


def _unreadable(name: str, got: str, remedy: str) -> UserError:
    return UserError(f"cannot read the image {name} | {got} | {remedy}")

"""Opening of images: any ``ImageSource`` becomes an upright PIL image in mode RGB.

An image is turned upright by its EXIF tag, as Hugging Face's ``load_image`` does. Transparency is laid on
white, as its image processors do (``load_image`` drops the alpha channel instead, and shows what is hidden
under it). All other conversions of colour are those of Pillow's ``convert("RGB")``, as in Hugging Face's
code; 16-bit greyscale is clipped at 255. The first frame of a file with several (GIF, WebP, TIFF) is the
image.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Iterator
from functools import cached_property
from os import PathLike

import numpy as np
from PIL import ExifTags, Image, ImageOps

from foveate.engines.errors import UserError
from foveate.runtime.images.image_source import EncodedImage, ImageSource, read_once, short
from foveate.runtime.images.token_layout import Size

__all__ = ["ImageReader", "load_image", "size_of"]

_HEIC = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")  # brands, found at byte 8


class ImageReader:
    """Reads an image once: opens it when its size or its pixels are first asked for, and decodes it once.

    A pipe or an open file is read to its end when the reader is made. That raises UserError for a source
    that is missing. ``size`` and ``load`` raise UserError for one that is not an image, damaged, or larger
    than Pillow's limit against decompression bombs (``Image.MAX_IMAGE_PIXELS``, 89 megapixels by default).
    """

    def __init__(self, source: ImageSource) -> None:
        source = read_once(source)
        self._file = source if not isinstance(source, (Image.Image, np.ndarray)) else None
        self._opened = _from_array(source) if isinstance(source, np.ndarray) else None
        if isinstance(source, Image.Image):
            self._opened = source
        self._pixels: Image.Image | None = None

    @cached_property
    def size(self) -> Size:
        """Return width and height of the upright image. A file is not decoded."""
        with self._opening() as image:
            if image.getexif().get(ExifTags.Base.Orientation) not in (5, 6, 7, 8):
                return image.size
            # Pillow turns a TIFF upright itself: some versions when it is opened, some when it is decoded
            if image.format == "TIFF":
                return _upright(image).size
            return image.size[1], image.size[0]

    def load(self) -> Image.Image:
        """Return the image, upright, in mode RGB."""
        if self._pixels is None:
            try:
                with self._opening() as image:
                    self._pixels = _rgb(_upright(image))
            finally:
                self.close()
            self.size = self._pixels.size
        return self._pixels

    def close(self) -> None:
        """Close the file. An image of the caller's stays open."""
        if self._file is not None and self._opened is not None:
            self._opened.close()
            self._opened = None

    @contextlib.contextmanager
    def _opening(self) -> Iterator[Image.Image]:
        """Give the image, not decoded. Errors of opening and decoding a file become a UserError."""
        if self._file is None:
            assert self._opened is not None  # an image or an array in memory
            yield self._opened
            return
        with _faults(self._file):
            if self._opened is None:
                self._opened = _open(self._file)
            yield self._opened


def load_image(source: ImageSource) -> Image.Image:
    """Return the image, upright, in mode RGB. Raises UserError as ``ImageReader`` does."""
    return ImageReader(source).load()


def size_of(source: ImageSource) -> Size:
    """Return width and height of the upright image.

    A file is not decoded. Raises UserError as ``ImageReader`` does.
    """
    reader = ImageReader(source)
    size = reader.size
    reader.close()
    return size


_File = EncodedImage | str | PathLike[str]
"""An image file, in memory or on disk."""


def _open(file: _File) -> Image.Image:
    """Return the image of ``file``, not decoded yet."""
    image = Image.open(io.BytesIO(file.data) if isinstance(file, EncodedImage) else file)
    if image.format == "EPS":  # Pillow hands it to Ghostscript, which runs it as a program
        image.close()
        raise Image.UnidentifiedImageError
    return image


def _name(file: _File) -> str:
    return file.name if isinstance(file, EncodedImage) else short(file)


@contextlib.contextmanager
def _faults(file: _File) -> Iterator[None]:
    """Turn errors of opening and decoding ``file`` into a UserError."""
    name = _name(file)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            yield
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        limit = (Image.MAX_IMAGE_PIXELS or 0) // 1_000_000
        raise UserError(
            f"the image {name} is too large | expected at most {limit} megapixels | scale it down first"
        ) from error
    except Image.UnidentifiedImageError as error:
        raise _unknown_format(file, name) from error
    except PermissionError as error:
        raise UserError(f"cannot read the image {name} | permission denied | make it readable") from error
    except Exception as error:  # decoders raise OSError, SyntaxError, ValueError, struct.error and more
        raise UserError(
            f"cannot read the image {name} | it is damaged or cut short ({error}) | copy or save it again"
        ) from error


def _unknown_format(source: _File, name: str) -> UserError:
    known = "give a PNG, JPEG, WebP, TIFF, BMP or GIF"
    if isinstance(source, EncodedImage):
        head = source.data[:12]
    else:
        with open(source, "rb") as file:
            head = file.read(12)
    if head[4:8] == b"ftyp" and head[8:] in _HEIC:
        return UserError(
            f"cannot read the image {name} | it is HEIC, which Pillow does not decode | "
            "convert it to JPEG, for example with heif-convert, or set the camera to JPEG"
        )
    if head[4:8] == b"ftyp" or head[:4] == b"\x1aE\xdf\xa3":
        return UserError(
            f"cannot read the image {name} | it looks like a video | give it with --video, or an image of it"
        )
    return UserError(
        f"cannot read the image {name} | it is not an image in a format that Pillow knows | {known}"
    )


def _upright(image: Image.Image) -> Image.Image:
    return ImageOps.exif_transpose(image)


def _rgb(image: Image.Image) -> Image.Image:
    if "A" in image.getbands() or image.mode in ("RGBa", "La") or image.info.get("transparency") is not None:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


def _from_array(array: np.ndarray) -> Image.Image:
    fits = array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (1, 3, 4))
    if array.dtype != np.uint8 or not fits or array.size == 0:
        raise UserError(
            f"this array is no image | got {array.dtype} {list(array.shape)}, expected uint8 "
            "[H, W, 3] (RGB), [H, W, 4] (RGBA) or [H, W] | scale it to 0..255 and put the channels last"
        )
    return Image.fromarray(
        np.ascontiguousarray(array[:, :, 0] if array.ndim == 3 and array.shape[2] == 1 else array)
    )

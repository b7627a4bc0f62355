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
from os import PathLike

import numpy as np
from PIL import ExifTags, Image, ImageOps

from foveate.engines.errors import UserError
from foveate.runtime.images.image_source import EncodedImage, ImageSource, read_once, short

__all__ = ["load_image", "size_of"]

_HEIC = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")  # brands, found at byte 8


def load_image(source: ImageSource) -> Image.Image:
    """Return the image, upright, in mode RGB.

    Raises UserError for a source that is missing, not an image, damaged, or larger than Pillow's limit
    against decompression bombs (``Image.MAX_IMAGE_PIXELS``, 89 megapixels by default). A pipe or an open file
    is read to its end.
    """
    if isinstance(source, Image.Image):
        return _rgb(_upright(source))
    if isinstance(source, np.ndarray):
        return _rgb(_from_array(source))
    with _reading(read_once(source)) as image:
        return _rgb(_upright(image))


def size_of(source: ImageSource) -> tuple[int, int]:
    """Return width and height of the upright image.

    A file is not decoded. Raises UserError as ``load_image`` does.
    """
    if isinstance(source, np.ndarray):
        return _from_array(source).size
    opened = (
        contextlib.nullcontext(source) if isinstance(source, Image.Image) else _reading(read_once(source))
    )
    with opened as image:
        if image.getexif().get(ExifTags.Base.Orientation) not in (5, 6, 7, 8):
            return image.size
        # Pillow turns a TIFF upright itself: some versions when it is opened, some when it is decoded
        if image.format == "TIFF":
            return _upright(image).size
        return image.size[::-1]


@contextlib.contextmanager
def _reading(source: EncodedImage | str | PathLike[str]) -> Iterator[Image.Image]:
    """Open an image file during the block. Errors of reading and decoding it become a UserError."""
    encoded = isinstance(source, EncodedImage)
    name = source.name if encoded else short(source)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(source.data) if encoded else source) as image:
                if image.format == "EPS":  # Pillow hands it to Ghostscript, which runs it as a program
                    raise Image.UnidentifiedImageError
                yield image
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        limit = (Image.MAX_IMAGE_PIXELS or 0) // 1_000_000
        raise UserError(
            f"the image {name} is too large | expected at most {limit} megapixels | scale it down first"
        ) from error
    except Image.UnidentifiedImageError as error:
        raise _unknown_format(source, name) from error
    except PermissionError as error:
        raise UserError(f"cannot read the image {name} | permission denied | make it readable") from error
    except Exception as error:  # decoders raise OSError, SyntaxError, ValueError, struct.error and more
        raise UserError(
            f"cannot read the image {name} | it is damaged or cut short ({error}) | copy or save it again"
        ) from error


def _unknown_format(source: EncodedImage | str | PathLike[str], name: str) -> UserError:
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

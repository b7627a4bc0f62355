"""Images are opened upright as by Hugging Face; files that are no images are refused in one sentence."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
import pytest
from image_samples import noise, smooth
from PIL import Image
from transformers.image_utils import load_image as hugging_face_load_image

from foveate.engines.errors import UserError
from foveate.runtime.images.image_file import ImageReader, load_image, size_of


@pytest.mark.parametrize("kind", ("JPEG", "PNG", "WEBP", "TIFF"))
@pytest.mark.parametrize("tag", range(1, 9))
def test_the_size_is_that_of_the_upright_image(kind, tag, tmp_path):
    """Also in TIFF, which Pillow turns by itself; the size decides which tokens an image has."""
    exif = Image.Exif()
    exif[0x0112] = tag
    Image.fromarray(noise(60, 80)).save(tmp_path / "x", kind, exif=exif)
    want = hugging_face_load_image(str(tmp_path / "x"))
    assert size_of(tmp_path / "x") == load_image(tmp_path / "x").size == want.size
    assert np.array_equal(np.asarray(load_image(tmp_path / "x")), np.asarray(want))


def _saved(folder, name, image, kind, **options):
    image.save(folder / name, kind, **options)


def _png_of_16_bits(folder, name, *_):
    """RGB of 16 bits, which Pillow reads but does not write."""
    rows = np.random.default_rng(3).integers(0, 65536, (60, 80, 3)).astype(">u2")
    head = (80).to_bytes(4, "big") + (60).to_bytes(4, "big") + bytes([16, 2, 0, 0, 0])
    body = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    chunks = ((b"IHDR", head), (b"IDAT", body), (b"IEND", b""))
    (folder / name).write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*each) for each in chunks))


FRAMES = {"save_all": True, "append_images": [Image.fromarray(noise(60, 80, seed=n)) for n in (1, 2)]}


RGB = Image.fromarray(noise(60, 80))


ODD = {
    "animated GIF": (_saved, RGB, "GIF", FRAMES),
    "animated WebP": (_saved, RGB, "WEBP", FRAMES),
    "animated PNG": (_saved, RGB, "PNG", FRAMES),
    "pages of a TIFF": (_saved, RGB, "TIFF", FRAMES),
    "MPO of a phone": (_saved, RGB, "MPO", FRAMES),
    "CMYK": (_saved, RGB.convert("CMYK"), "JPEG", {}),
    "CMYK TIFF": (_saved, RGB.convert("CMYK"), "TIFF", {}),
    "LAB": (_saved, Image.merge("LAB", RGB.split()), "TIFF", {}),
    "floats": (_saved, Image.fromarray(noise(60, 80, 1).astype(np.float32) * 1.5), "TIFF", {}),
    "16 bit grey": (_saved, Image.fromarray(noise(60, 80, 1).astype(np.uint16) * 3), "PNG", {}),
    "32 bit grey": (_saved, Image.fromarray(noise(60, 80, 1).astype(np.int32) * 3), "TIFF", {}),
    "16 bit RGB": (_png_of_16_bits, RGB, "PNG", {}),
    "progressive": (_saved, RGB, "JPEG", {"progressive": True}),
    "JPEG 2000": (_saved, RGB, "JPEG2000", {}),
    "BMP": (_saved, RGB, "BMP", {}),
    "PPM": (_saved, RGB, "PPM", {}),
    "icon": (_saved, RGB, "ICO", {}),
}


@pytest.mark.parametrize("name", ODD)
def test_odd_images_are_what_hugging_face_loads(name, tmp_path):
    make, image, kind, options = ODD[name]
    make(tmp_path, "x", image, kind, **options)
    want = hugging_face_load_image(str(tmp_path / "x"))
    got = load_image(tmp_path / "x")
    assert size_of(tmp_path / "x") == got.size
    assert np.array_equal(np.asarray(got), np.asarray(want))


def bad_file(folder: Path, kind: str) -> Path:
    path = folder / "image.jpg"
    if kind == "truncated jpeg":
        Image.fromarray(smooth(300, 300)).save(path)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif kind == "truncated png":
        Image.fromarray(noise(90, 90)).save(path, "PNG")
        path.write_bytes(path.read_bytes()[:2000])
    elif kind == "broken png header":
        Image.fromarray(noise(90, 90)).save(path, "PNG")
        data = bytearray(path.read_bytes())
        data[18] ^= 255
        path.write_bytes(data)
    elif kind == "zero bytes":
        path.write_bytes(b"")
    elif kind == "bomb":
        path.write_bytes(png(20_000, 20_000))
    elif kind == "large":
        path.write_bytes(png(10_000, 10_000))
    elif kind == "text":
        path.write_text("This is not an image at all, although its name says so.\n" * 20)
    elif kind == "directory":
        path.mkdir()
    return path


def chunk(name: bytes, data: bytes) -> bytes:
    return len(data).to_bytes(4, "big") + name + data + zlib.crc32(name + data).to_bytes(4, "big")


def png(width: int, height: int) -> bytes:
    """A well-formed bilevel PNG of black pixels: small as a file, huge when decoded."""
    head = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([1, 0, 0, 0, 0])
    packer = zlib.compressobj(1)
    rows = b"".join(packer.compress(bytes(1 + (width + 7) // 8)) for _ in range(height)) + packer.flush()
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    "kind, says",
    [
        ("truncated jpeg", "damaged or cut short"),
        ("truncated png", "damaged or cut short"),
        ("broken png header", "not an image|damaged"),
        ("zero bytes", "the file is empty"),
        ("bomb", "too large"),
        ("large", "too large"),
        ("text", "not an image"),
        ("directory", "got a directory"),
        ("missing", "no such file"),
    ],
)
def test_bad_images_are_refused_with_one_sentence(kind, says, tmp_path, recwarn):
    path = bad_file(tmp_path, kind)
    with pytest.raises(UserError, match=says) as caught:
        load_image(path)
    message = str(caught.value)
    assert str(path) in message and message.count(" | ") == 2 and "\n" not in message
    assert not recwarn.list


@pytest.mark.parametrize(
    "array", [np.zeros((5, 5, 3), np.float32), np.zeros((3, 5, 5), np.uint8), np.zeros((0, 5, 3), np.uint8)]
)
def test_arrays_that_are_no_images(array):
    with pytest.raises(UserError, match="this array is no image"):
        load_image(array)


def test_a_file_is_opened_and_decoded_once(tmp_path, monkeypatch):
    """It may be gone after that."""
    path = tmp_path / "x.png"
    Image.fromarray(noise(6, 4)).save(path)
    opened, work = [], Image.open
    monkeypatch.setattr(Image, "open", lambda file: opened.append(file) or work(file))
    reader = ImageReader(path)
    assert not opened and reader.size == (4, 6)
    assert np.array_equal(np.asarray(reader.load()), noise(6, 4))
    path.unlink()
    assert reader.load() is reader.load() and reader.size == (4, 6) and opened == [path]


def test_an_image_of_the_callers_stays_open():
    image = Image.fromarray(noise(6, 4))
    ImageReader(image).load()
    assert ImageReader(image).size == (4, 6) and image.getpixel((0, 0))


def test_the_size_of_a_file_is_that_of_the_upright_image(tmp_path) -> None:
    path = tmp_path / "turned.jpg"
    image, exif = Image.new("RGB", (30, 20)), Image.Exif()
    exif[0x0112] = 6
    image.save(path, exif=exif)
    assert size_of(path) == (20, 30) and size_of(image) == (30, 20)
    assert size_of(np.zeros((20, 30, 3), np.uint8)) == (30, 20)
    with pytest.raises(UserError, match="no such file"):
        size_of(tmp_path / "missing.jpg")

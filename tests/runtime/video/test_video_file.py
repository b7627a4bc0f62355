"""Frames of videos: which ones, and out of a real file."""

from __future__ import annotations

import re
import sys

import numpy as np
import pytest
from cameras import write_clip
from image_samples import WINDOWS
from PIL import Image

from foveate.engines.errors import UserError
from foveate.runtime.pipeline import Pipeline
from foveate.runtime.video.video_file import Video, VideoSampling, load_video, sampled

SAMPLING = VideoSampling.from_json(WINDOWS)


@pytest.fixture
def file(tmp_path):
    """Three seconds at 10 frames per second, each frame as bright as its number."""
    return write_clip(tmp_path / "clip.avi", 30, 10, (64, 48), 8)


def test_frames_of_a_file_at_even_distances(file):
    video = load_video(file, SAMPLING)
    assert video.size == (64, 48) and video.interval == pytest.approx(0.5)
    assert [round(frame.getpixel((0, 0))[0] / 8) for frame in video.frames] == [0, 5, 10, 15, 20, 25]


def mjpeg(levels):
    """A raw stream: JPEGs behind each other."""
    cv2 = pytest.importorskip("cv2")
    frames = (np.full((48, 64, 3), level, np.uint8) for level in levels)
    return b"".join(cv2.imencode(".jpg", frame)[1].tobytes() for frame in frames)


def h264(levels):
    """A raw stream of grey frames of 16 x 16 pixels, each of one macroblock without compression (I_PCM)."""

    def golomb(number):
        return f"{number + 1:b}".zfill(2 * (number + 1).bit_length() - 1)

    def unit(head, bits, samples=b""):
        """``bits``, then ``samples`` from the next byte on, then the closing bit; 00 00 is escaped."""
        end = b"\x80" if samples else b""
        bits += "" if samples else "1"
        bits += "0" * (-len(bits) % 8)
        body = bytes([head]) + int(bits, 2).to_bytes(len(bits) // 8, "big") + samples + end
        return b"\0\0\0\1" + re.sub(rb"\0\0(?=[\0-\3])", b"\0\0\3", body)

    sets = unit(
        0x67,
        f"{66:08b}{0xC0:08b}{10:08b}"
        + golomb(0)
        + golomb(0)
        + golomb(2)
        + golomb(0)
        + "0"
        + golomb(0) * 2
        + "1100",
    )
    sets += unit(0x68, golomb(0) * 2 + "00" + golomb(0) * 3 + "000" + golomb(0) * 3 + "100")
    images = (
        unit(
            0x65,
            golomb(0)
            + golomb(7)
            + golomb(0)
            + "0000"
            + golomb(number % 2)
            + "00"
            + golomb(0)
            + golomb(1)
            + golomb(25),
            bytes([level]) * 256 + bytes([128]) * 128,
        )
        for number, level in enumerate(levels)
    )
    return sets + b"".join(images)


@pytest.mark.parametrize("name, stream", (("a.h264", h264), ("a.mjpeg", mjpeg)))
def test_a_raw_stream_is_counted_by_decoding(name, stream, tmp_path):
    """50 frames, of 25 a second: four, since that is the least. OpenCV's own count is below zero."""
    cv2 = pytest.importorskip("cv2")
    levels = range(20, 220, 4)
    path = tmp_path / name
    path.write_bytes(stream(levels))
    assert cv2.VideoCapture(str(path)).get(cv2.CAP_PROP_FRAME_COUNT) < 1
    video = load_video(path, SAMPLING)
    assert video.interval == pytest.approx(0.5)
    found = [frame.getpixel((3, 3))[0] for frame in video.frames]
    scale = 255 / 219 if name == "a.h264" else 1  # video has its black at 16 and its white at 235
    want = [(levels[number] - 16 * (scale > 1)) * scale for number in (0, 12, 25, 37)]
    assert found == pytest.approx(want, abs=3)


def test_a_phone_that_lay_on_its_side(tmp_path):
    """The matrix in an MP4's track header turns the image by a quarter; the frames are upright."""
    cv2 = pytest.importorskip("cv2")
    path = tmp_path / "phone.mp4"
    out = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), 10, (64, 48))
    frame = np.zeros((48, 64, 3), np.uint8)
    frame[:24, :32] = 255  # left and above
    for _ in range(20):
        out.write(frame)
    out.release()
    data = bytearray(path.read_bytes())
    matrix = data.index(b"tkhd") + 4 + 40  # behind version, times, id, duration, layer and volume
    one, zero = (1 << 16).to_bytes(4, "big"), bytes(4)
    upright = one + zero * 3 + one + zero * 3 + (1 << 30).to_bytes(4, "big")
    assert data[matrix : matrix + 36] == upright
    minus = (-(1 << 16)).to_bytes(4, "big", signed=True)
    turned = (
        zero
        + one
        + zero
        + minus
        + zero * 2
        + (48 << 16).to_bytes(4, "big")
        + zero
        + (1 << 30).to_bytes(4, "big")
    )
    data[matrix : matrix + 36] = turned
    path.write_bytes(data)
    video = load_video(path, SAMPLING)
    assert video.size == (48, 64)
    corners = [video.frames[0].getpixel(at)[0] > 128 for at in ((5, 5), (42, 5), (5, 58), (42, 58))]
    assert corners == [False, True, False, False]  # turned clockwise


@pytest.mark.parametrize(
    ("total", "rate", "count"),
    [(300, 30, 20), (10, 30, 4), (3, 30, 2), (1, 30, 1), (99999, 10, 768), (70, 30, 4)],
)
def test_the_number_of_frames_that_are_shown(total, rate, count):
    """Two a second, four at least, an even number, of few frames those that there are."""
    wanted = sampled(total, rate, SAMPLING)
    assert len(wanted) == count and wanted[0] == 0 and wanted[-1] < total
    assert count == 1 or (np.diff(wanted) >= 1).all()


def test_files_that_are_no_videos_are_refused(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="no such file"):
        load_video(tmp_path / "missing.mp4", SAMPLING)
    text = tmp_path / "text.mp4"
    text.write_text("not a video")
    with pytest.raises(UserError, match="it is no video"):
        load_video(text, SAMPLING)
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(UserError, match=r"pip install --editable '\.\[video\]'; for a device .* --video"):
        load_video(text, SAMPLING)


def test_a_model_without_videos_refuses_them(bundle):
    video = Video((Image.new("RGB", (8, 8)),) * 4, 0.5)
    with pytest.raises(UserError, match="takes no videos"):
        Pipeline.load(bundle).generate(video, "What?")

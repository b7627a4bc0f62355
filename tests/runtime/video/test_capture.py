"""Cameras and files: their names, links and serial numbers, and what is said of those that are not there."""

from __future__ import annotations

from pathlib import Path

import cv2
import pytest
from cameras import write_clip

from foveate.engines.errors import UserError
from foveate.runtime.video import capture


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    """90 frames at 30 a second."""
    return write_clip(tmp_path / "clip.avi", 90, 30, (64, 64), 2)


def test_a_real_file(clip: Path) -> None:
    with capture.file(str(clip)).open() as opened:
        every = list(opened)
    assert len(every) == 90 and every[30][0] == pytest.approx(1.0, abs=0.05)
    assert abs(int(every[40][1].mean()) - 80) < 4 and every[0][1].shape == (64, 64, 3)


@pytest.mark.parametrize(
    ("where", "name"), (("0", "camera 0"), ("/dev/video2", "camera 2"), ("rtsp://host/a", "rtsp://host/a"))
)
def test_names_of_cameras(where: str, name: str) -> None:
    assert capture.camera(where).name == name and capture.camera(where).live


def test_sources_that_are_neither_camera_nor_video(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--video for a file"):
        capture.camera("clip.mp4")
    with pytest.raises(UserError, match="no such file"):
        capture.file(str(tmp_path / "none.mp4"))
    (tmp_path / "bad.mp4").write_bytes(b"no video at all")
    with pytest.raises(UserError, match="OpenCV cannot open it"):
        capture.file(str(tmp_path / "bad.mp4"))
    with pytest.raises(OSError, match="cannot be opened"), capture.camera("97").open():
        pass


@pytest.fixture
def devices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A /dev with two cameras, each of them with a node for its metadata, as udev lays it out."""
    root = tmp_path.resolve() / "dev"
    monkeypatch.setattr(capture, "_DEVICES", root)
    monkeypatch.setattr(capture, "_NAMES", tmp_path / "names")
    links = root / "v4l" / "by-id"
    links.mkdir(parents=True)
    for number, model in enumerate(("HD Webcam", "HD Webcam", "Front", "Front")):
        (root / f"video{number}").touch()
        (tmp_path / "names" / f"video{number}").mkdir(parents=True)
        (tmp_path / "names" / f"video{number}" / "name").write_text(model + "\n")
        link = f"usb-Maker_{model.replace(' ', '_')}_SN{number // 2}77-video-index{number % 2}"
        (links / link).symlink_to(f"../../video{number}")
    (root / "front_cam").symlink_to("video2")
    return root


def opened(monkeypatch: pytest.MonkeyPatch, where: str) -> int:
    """The number that OpenCV is asked to open."""
    asked = []

    class Nothing:
        def isOpened(self) -> bool:  # noqa: N802
            return False

        def release(self) -> None: ...

    monkeypatch.setattr(cv2, "VideoCapture", lambda number, backend: (asked.append(number), Nothing())[1])
    with pytest.raises(OSError, match="cannot be opened"), capture.camera(where).open():
        pass
    return asked[0]


def test_cameras_by_link_and_serial(devices: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    by_id = devices / "v4l" / "by-id" / "usb-Maker_Front_SN177-video-index0"
    for where in (by_id, devices / "front_cam", devices / "video2", "SN177", "Front", 2):
        assert opened(monkeypatch, str(where)) == 2, where
    assert opened(monkeypatch, str(by_id).replace("index0", "index1")) == 3
    elsewhere = devices.parent / "my_cam"
    elsewhere.symlink_to(devices / "front_cam")
    assert opened(monkeypatch, str(elsewhere)) == 2


def test_a_link_is_followed_at_every_opening(devices: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Plugged in again, a camera may have another number."""
    source = capture.camera(str(devices / "front_cam"))
    assert source.name == f"camera {devices}/front_cam" and source.live
    (devices / "front_cam").unlink()
    with (
        pytest.raises(OSError, match=r"front_cam is not there; there are .*video0 \(HD Webcam\)"),
        source.open(),
    ):
        pass
    (devices / "front_cam").symlink_to("video1")
    assert opened(monkeypatch, str(devices / "front_cam")) == 1
    (devices / "front_cam").unlink()
    (devices / "front_cam").write_text("no camera")
    with pytest.raises(OSError, match="leads to no camera"), source.open():
        pass


def test_a_camera_that_is_not_there_is_answered_with_those_that_are(devices: Path) -> None:
    with pytest.raises(
        UserError, match=r"no camera SN9 .* there are .*video2 \(Front\), .* \| name one"
    ) as error:
        capture.camera("SN9")
    assert error.value.code == 2
    with pytest.raises(
        UserError, match="it is part of usb-Maker_Front_SN177-video-index0, usb-Maker_HD_Webcam"
    ):
        capture.camera("Maker")
    with (
        pytest.raises(OSError, match=r"cannot be opened; there are .*video0 \(HD Webcam\)"),
        capture.camera("97").open(),
    ):
        pass
    for path in devices.glob("video*"):
        path.unlink()
    with pytest.raises(UserError, match=r"there is no .*/video\*"):
        capture.camera("SN9")

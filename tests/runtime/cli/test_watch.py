"""Watching: newest frame wins, a camera that dies and returns, signals, and memory that stays where it is."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

from foveate.engines.errors import UserError
from foveate.runtime.cli import watch
from foveate.runtime.pipeline import Pipeline
from foveate.runtime.video import capture, latest_frame
from foveate.runtime.video.latest_frame import Reader

SIDE = 16


def pixels(number: int) -> np.ndarray:
    return np.full((SIDE, SIDE, 3), number % 256, np.uint8)


class Fake:
    """A source from lists: each opening plays the next list.

    An exception in a list is raised, and a number is waited for in seconds.
    """

    name, live = "camera 0", True

    def __init__(self, *openings: list, live: bool = True) -> None:
        self.openings = list(openings)
        self.opened = 0
        self.live = live
        self.shown = threading.Event()  # set when everything was played

    @contextlib.contextmanager
    def open(self) -> Iterator[Iterator[tuple[float, np.ndarray]]]:
        self.opened += 1
        if not self.openings:
            self.shown.set()
            raise OSError("cannot be opened")
        opening = self.openings.pop(0)
        if isinstance(opening, OSError):
            raise opening
        yield self._play(opening)

    def _play(self, opening: list) -> Iterator[tuple[float, np.ndarray]]:
        for what in opening:
            if isinstance(what, Exception):
                raise what
            if isinstance(what, float):
                time.sleep(what)
            else:
                yield what if isinstance(what, tuple) else (0.0, pixels(what))


class Gated(Fake):
    """A source whose frames wait for ``play``."""

    def __init__(self) -> None:
        super().__init__([])
        self.turn, self.allowed, self.handed, self.closed = threading.Condition(), 0, 0, False

    def _play(self, opening: list) -> Iterator[tuple[float, np.ndarray]]:
        while True:
            with self.turn:  # the reader asks for the next one when it has put the last one in its slot
                self.handed += 1
                self.turn.notify_all()
                self.turn.wait_for(lambda: self.handed <= self.allowed or self.closed)
                if self.closed:
                    return
            yield 0.0, pixels(self.handed - 1)

    def play(self, number: int) -> None:
        """Hand out frames until ``number`` of them were read."""
        with self.turn:
            self.allowed = number
            self.turn.notify_all()
            assert self.turn.wait_for(lambda: self.handed > number, timeout=30)

    def close(self) -> None:
        with self.turn:
            self.closed = True
            self.turn.notify_all()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latest_frame, "_FIRST_PAUSE", 0.01)


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    """90 frames at 30 a second."""
    path = tmp_path / "clip.avi"
    out = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 30, (64, 64))
    for number in range(90):
        out.write(np.full((64, 64, 3), 2 * number, np.uint8))
    out.release()
    return path


def test_the_newest_frame_wins_and_no_frame_comes_twice() -> None:
    source = Fake([*range(50), 0.5])
    with Reader(source) as reader:
        while reader.read < 50:
            time.sleep(0.001)
        frame = reader.take(1)
        assert (frame.number, frame.pixels[0, 0, 0]) == (50, 49)
        assert reader.take(0.05) is None and not reader.ended


def test_a_slow_taker_sees_the_frame_that_is_newest_when_it_comes_back() -> None:
    """The newest frame is known however slow the machine is: frames come only while the taker is away."""
    source = Gated()
    with Reader(source) as reader, contextlib.closing(source):
        for newest in (6, 7, 30, 60):
            source.play(newest)
            before = time.monotonic()
            frame = reader.take(1)
            assert (frame.number, frame.pixels[0, 0, 0], reader.read) == (newest, newest - 1, newest)
            assert frame.taken <= before and frame.age >= time.monotonic() - before
            assert reader.take(0) is None  # those that were dropped do not come later


def test_a_camera_that_dies_and_returns() -> None:
    """Twice it cannot be opened, once it ends in the middle. Each loss and each return is reported once."""
    said: list[str] = []
    gone = OSError("No such device")
    source = Fake([1, 2, gone], gone, gone, [3, 4], [5, 0.5])
    with Reader(source, said.append) as reader:
        seen = []
        while not seen or seen[-1] != 5:
            if frame := reader.take(1):
                seen.append(int(frame.pixels[0, 0, 0]))
    assert source.opened == 5
    assert [line.split(":")[0].split(";")[0] for line in said] == [
        *("camera 0 is lost", "camera 0 is back", "camera 0 is lost", "camera 0 is back"),
    ]
    assert "No such device" in said[0] and "it ended" in said[2]


def test_a_frame_from_before_the_loss_is_not_handed_out_after_it() -> None:
    source = Fake([1, OSError("unplugged")])
    with Reader(source) as reader:
        assert source.shown.wait(2)
        assert reader.read == 1 and reader.take(0.05) is None


def test_pauses_grow_and_have_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latest_frame, "MOST_PAUSE", 0.04)
    reader = Reader(Fake())
    waits: list[float] = []
    monkeypatch.setattr(
        reader._stop, "wait", lambda seconds: (waits.append(seconds), len(waits) == 5 and reader._stop.set())
    )
    reader._run()
    assert waits == [0.01, 0.02, 0.04, 0.04, 0.04]


def test_a_file_plays_at_its_own_speed_and_ends() -> None:
    source = Fake([(0.0, pixels(0)), (0.1, pixels(1)), (0.2, pixels(2))], live=False)
    start = time.monotonic()
    with Reader(source) as reader:
        numbers = []
        while not reader.ended:
            if frame := reader.take(0.5):
                numbers.append(frame.number)
    assert numbers == [1, 2, 3] and 0.18 < time.monotonic() - start < 2


def test_errors_of_the_reading_thread_are_raised() -> None:
    with Reader(Fake([1, ZeroDivisionError("a bug")])) as reader, pytest.raises(ZeroDivisionError):
        while not reader.ended:
            reader.take(0.1)


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


def run(bundle: Path, *arguments: object) -> int:
    return watch.main(
        [str(bundle), "--prompt", "What is there?", "--max-new-tokens", "4", *map(str, arguments)]
    )


def test_answers_about_a_video(bundle: Path, clip: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each answer is one JSON document about the newest frame when it started.

    A frame that comes in that very moment may be missed.
    """
    assert run(bundle, "--video", clip, "--keep", 3, "--every", 0.5, "--json") == 0
    out, err = capsys.readouterr()
    answers = [json.loads(line) for line in out.splitlines()]
    assert 4 <= len(answers) <= 8
    numbers = [answer["frame"] for answer in answers]
    assert numbers == sorted(set(numbers)) and numbers[-1] - numbers[0] > 40
    assert all(answer["newer"] <= 1 and len(answer["kept"][0]) == 3 for answer in answers)
    assert err.endswith(f"{len(answers)} answers, 90 frames read\n")


def test_text_for_people(bundle: Path, clip: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(bundle, "--video", clip, "--count", 2) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("[")]
    assert len(lines) == 2 and "frame" in lines[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    (
        ((), "expected --camera or --video"),
        (("--camera", "0", "--video", "x"), "expected --camera or --video"),
        (("--camera", "0", "--every", "-1"), "wrong every"),
        (("--camera", "0", "--keep", "9999"), "wrong keep"),
    ),
)
def test_wrong_usage_is_said_before_a_camera_opens(
    bundle: Path, arguments: tuple[str, ...], message: str
) -> None:
    with pytest.raises(UserError, match=message) as error:
        run(bundle, *arguments)
    assert error.value.code == 2


class Interrupted:
    """A pipeline that gets a signal in the middle of its second answer."""

    def __init__(self, pipe: Pipeline, number: int) -> None:
        self.pipe, self.number, self.answers, self.closed = pipe, number, 0, False

    def stream(self, *arguments: object, **named: object):
        stream = self.pipe.stream(*arguments, **named)
        self.answers += 1
        outer = self

        class Noisy:
            def __iter__(self):
                for count, piece in enumerate(stream):
                    if outer.answers == 2 and count == 1:
                        os.kill(os.getpid(), outer.number)
                    yield piece

            def close(self) -> None:
                outer.closed = True
                stream.close()

            @property
            def answer(self):
                return stream.answer

        return Noisy()


@pytest.mark.parametrize("number", (signal.SIGTERM, signal.SIGINT))
def test_a_signal_in_mid_answer(bundle: Path, capsys: pytest.CaptureFixture[str], number: int) -> None:
    """The answer is broken off, the loop ends, the old handlers are back."""
    pipe = Interrupted(Pipeline.load(bundle), number)
    source = Fake([x for n in range(500) for x in (n, 0.005)])
    before = signal.getsignal(number)
    with watch.stopped_by_signals() as stop:
        assert watch.watch(pipe, source, "What?", stop, {"max_new_tokens": 8}) == 1
        assert signal.getsignal(number) is before  # a second one would do what it always does
    assert stop.is_set() and pipe.closed and pipe.answers == 2
    assert capsys.readouterr().out.endswith(" [broken off]\n")


def test_a_process_that_is_told_to_stop(bundle: Path) -> None:
    """A camera that is not there is waited for; SIGTERM ends it cleanly and soon."""
    command = [
        sys.executable,
        "-m",
        "foveate.runtime.cli",
        "watch",
        str(bundle),
        "--camera",
        "93",
        "--prompt",
        "What?",
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert "camera 93 is lost: cannot be opened" in next(line for line in process.stderr if "lost" in line)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 0 and "0 answers, 0 frames read" in err


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc")
def test_memory_stays_where_it_is(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """120 answers about images of 0.75 MB after the first 40: a leak of one image in ten would show."""
    pipe, stop = Pipeline.load(bundle, threads=1), threading.Event()
    large = np.zeros((500, 500, 3), np.uint8)
    source = Fake([], [])

    def play(opening: list) -> Iterator[tuple[float, np.ndarray]]:
        while True:
            time.sleep(0.002)
            yield 0.0, large + 1

    source._play = play
    watch.watch(pipe, source, "What?", stop, {"max_new_tokens": 2}, count=40)
    before = resident()
    watch.watch(pipe, source, "What?", stop, {"max_new_tokens": 2}, count=120)
    assert resident() - before < 12 * large.nbytes

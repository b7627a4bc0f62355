"""The latest frame: the newest one wins, and a camera that dies and returns."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest
from cameras import Fake, pixels

from foveate.engines.errors import UserError
from foveate.runtime.video import latest_frame
from foveate.runtime.video.latest_frame import Reader


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


@pytest.mark.parametrize(
    ("start", "why"), ((OSError("it is not there"), "it is not there"), ([], "no frame"))
)
def test_a_camera_that_gives_no_frame_at_the_start_is_an_error(start: object, why: str) -> None:
    source, said = Fake(start, [1, 0.5]), []
    with Reader(source, said.append) as reader, pytest.raises(UserError, match=f"cannot watch .*{why}"):
        while not reader.ended and reader.take(1) is None:
            pass
    assert source.opened == 1 and not said


def test_a_frame_from_before_the_loss_is_not_handed_out_after_it() -> None:
    source = Fake([1, OSError("unplugged")])
    with Reader(source) as reader:
        assert source.shown.wait(2)
        assert reader.read == 1 and reader.take(0.05) is None


def test_pauses_grow_and_have_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latest_frame, "MOST_PAUSE", 0.04)
    reader = Reader(Fake([1]))
    waits: list[float] = []

    def wait(seconds: float) -> bool:
        waits.append(seconds)
        if len(waits) == 6:
            reader._stop.set()
        return reader._stop.is_set()

    monkeypatch.setattr(reader._stop, "wait", wait)
    reader._run()
    assert waits == [0.0, 0.01, 0.02, 0.04, 0.04, 0.04]


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

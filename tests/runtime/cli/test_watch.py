"""The verb watch: answers about a video, signals, and memory that stays where it is."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from cameras import Fake, write_clip

from foveate.engines.errors import UserError
from foveate.runtime.cli import watch
from foveate.runtime.pipeline import Pipeline


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    """90 frames at 30 a second."""
    return write_clip(tmp_path / "clip.avi", 90, 30, (64, 64), 2)


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


def test_a_camera_that_is_not_there_is_an_error(bundle: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """It ends at once with the cameras that there are, and OpenCV's own warnings do not hide it."""
    with pytest.raises(
        UserError, match=r"cannot watch camera 93 \| cannot be opened; there (is|are) .*/video"
    ):
        run(bundle, "--camera", 93)
    assert "VIDEOIO" not in capfd.readouterr().err


def test_a_process_that_is_told_to_stop(bundle: Path, clip: Path) -> None:
    """SIGTERM ends it cleanly and soon, while it waits for the next answer's time."""
    command = [
        sys.executable,
        "-m",
        "foveate.runtime.cli",
        "watch",
        str(bundle),
        "--video",
        str(clip),
        "--every",
        "1000",
        "--max-new-tokens",
        "4",
        "--json",
        "--prompt",
        "What?",
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert json.loads(process.stdout.readline())["frame"] >= 1
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 0 and "1 answers, " in err


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

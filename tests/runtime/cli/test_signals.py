"""SIGTERM ends a verb in order, as process 1 too, and soon even while a library is busy."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from foveate.runtime.cli.signals import handled_elsewhere, terminable

VERB = """
import ctypes, sys, time
from foveate.runtime import cli
from foveate.runtime.cli import run
def main(argv):
    try:
        print("begun", flush=True)
        {busy}
    finally:
        print("cleaned up", flush=True)
run.main = main
sys.exit(cli.main(["run"]))
"""


def stopped(busy: str, *prefix: str, after: float = 0) -> tuple[int, str, float]:
    """Return exit code, output and seconds of a verb that was stopped ``after`` seconds of being busy."""
    command = [*prefix, sys.executable, "-c", VERB.format(busy=busy)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "begun\n"
        time.sleep(after)
        start = time.monotonic()
        target = process.pid
        if prefix:
            (target,) = map(int, Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split())
        subprocess.run(["kill", "-TERM", str(target)], check=True)
        out, _ = process.communicate(timeout=60)
        return process.returncode, out, time.monotonic() - start


def test_a_verb_cleans_up_and_says_143() -> None:
    code, out, seconds = stopped("time.sleep(60)")
    assert (code, out) == (143, "cleaned up\n") and seconds < 4


def test_so_does_process_1_of_a_container() -> None:
    """Process 1, for which Linux ignores SIGTERM unless it is handled."""
    prefix = ["unshare", "--pid", "--fork", "--mount-proc"]
    probe = subprocess.run([*prefix, "true"], capture_output=True, text=True, check=False)
    if probe.returncode:
        pytest.skip(f"no namespace of processes can be made here: {probe.stderr.strip()}")
    code, out, _ = stopped("time.sleep(60)", *prefix)
    assert (code, out) == (143, "cleaned up\n")


def test_a_library_that_catches_everything_changes_nothing() -> None:
    """Torch's tracer does."""
    busy = """
        try:
            time.sleep(60)
        except BaseException:
            raise AttributeError("half imported")"""
    code, out, _ = stopped(busy)
    assert (code, out) == (143, "cleaned up\n")


def test_a_library_that_does_not_return_is_left_after_seconds() -> None:
    """A mutex that is locked twice waits in C for ever, and no signal wakes it."""
    lock = "libc.pthread_mutex_lock(mutex)"
    code, out, seconds = stopped(
        f"libc, mutex = ctypes.CDLL(None), ctypes.create_string_buffer(64); {lock}; {lock}", after=2
    )
    assert (code, out) == (143, "") and 4 < seconds < 30


def test_handlers_are_put_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with terminable():
        assert signal.getsignal(signal.SIGTERM) is not before
        with handled_elsewhere():
            pass
    assert signal.getsignal(signal.SIGTERM) is before


def test_other_threads_and_handlers_of_others_are_left_alone() -> None:
    seen: list[object] = []

    def look() -> None:
        with terminable():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert seen == [signal.SIG_DFL]

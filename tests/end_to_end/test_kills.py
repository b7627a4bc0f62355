"""Builds and compilations are killed at random moments, and nothing is lost.

They run as process 1 of a container on a mounted folder. After each kill the older bundle is whole, or the
folder is known as unfinished. The next run succeeds and leaves nothing behind.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from foveate.engines.errors import UserError
from foveate.runtime.bundle.compiled import compiled_engines
from foveate.runtime.bundle.loading import load
from foveate.runtime.compiling.compile import compile_bundle

pytestmark = pytest.mark.slow
KILLS = 20
FOVEATE = [sys.executable, "-m", "foveate.runtime.cli"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, save_checkpoint) -> Path:
    path = tmp_path_factory.mktemp("hf") / "tiny"
    save_checkpoint(path)
    return path


@pytest.fixture
def container(tmp_path: Path):
    """``container(*command)`` starts process 1 of a namespace, with ``disk`` mounted at ``out``.

    It returns the process and its id here.
    """
    for name in ("disk", "out"):
        (tmp_path / name).mkdir()

    def start(*command: str) -> tuple[subprocess.Popen[bytes], int]:
        script = 'mount --bind disk out && exec unshare --pid --fork --mount-proc --kill-child "$@"'
        line = ["unshare", "--mount", "--map-root-user", "sh", "-c", script, "sh", *command]
        with (tmp_path / "said").open("ab") as said:
            process = subprocess.Popen(line, cwd=tmp_path, stdout=said, stderr=said)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        while process.poll() is None:
            found = children.read_text().split() if children.exists() else []
            name = Path(f"/proc/{found[0]}/cmdline") if found else None
            if name and name.exists() and b"foveate" in name.read_bytes().split(b"\0")[:3][-1]:
                return process, int(found[0])
            time.sleep(0.005)
        pytest.skip(f"no namespaces can be made here: {(tmp_path / 'said').read_text()}")

    return start


def build_command(checkpoint: Path, out: str) -> list[str]:
    """Return the command that builds without a pruner and does not compile."""
    command = [*FOVEATE, "build", "--model", str(checkpoint), "--method", "none", "--dialects", "ort"]
    return [*command, "--out", out, "--precision", "fp32", "--no-compile"]


def moments(whole: float, seed: int) -> list[tuple[float, int]]:
    """Return seconds after the start, with SIGKILL and SIGTERM in turn.

    They are spread from the first tenth to the end of a run.
    """
    drawn = random.Random(seed)
    signals = (signal.SIGKILL, signal.SIGTERM)
    return [(drawn.uniform(0.1, 1.05) * whole, signals[number % 2]) for number in range(KILLS)]


def killed(container, command: list[str], seconds: float, number: int) -> int:
    """Run ``command`` in the container and kill it after so many seconds.

    Returns its exit code, 0 if it ended before.
    """
    process, pid = container(*command)
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        os.kill(pid, number)
    code = process.wait(60)
    return code


def timed(container, command: list[str]) -> float:
    process, _ = container(*command)
    start = time.monotonic()
    assert process.wait(600) == 0
    return time.monotonic() - start


def hidden(folder: Path) -> list[str]:
    """Hidden files but locks and stamps."""
    known = {".lock", ".checked.json"}
    return [str(path.relative_to(folder)) for path in folder.rglob(".*") if path.name not in known]


@pytest.mark.parametrize("place", ["a mount point", "a folder on it"])
def test_a_build_that_is_killed_loses_nothing(
    container, checkpoint: Path, tmp_path: Path, place: str
) -> None:
    out = "out" if place == "a mount point" else "out/b"
    disk = tmp_path / ("disk" if out == "out" else "disk/b")
    command = build_command(checkpoint, out)
    whole = timed(container, command)
    outcomes = {"whole": 0, "unfinished": 0}
    for seconds, number in moments(whole, seed=14):
        before = (disk / "bundle.json").read_bytes() if (disk / "bundle.json").exists() else None
        code = killed(container, command, seconds, number)
        assert (
            code == 0 or number == signal.SIGKILL or code in (143, 128 + signal.SIGTERM, -signal.SIGTERM)
        ), code
        try:
            load(disk, full=True)
            outcomes["whole"] += 1
        except UserError as error:
            assert place == "a mount point" and "was cut off" in str(error), error
            assert before is not None
            outcomes["unfinished"] += 1
            process, _ = container(*command)
            assert process.wait(600) == 0
            load(disk, full=True)
    process, _ = container(*command)
    assert process.wait(600) == 0, (tmp_path / "said").read_text()[-2000:]
    load(disk, full=True)
    assert hidden(tmp_path / "disk") == ([] if place == "a mount point" else [".b.lock"])
    print(f"{place}: {KILLS} kills, {outcomes}")


def test_a_compilation_that_is_killed_loses_nothing(container, checkpoint: Path, tmp_path: Path) -> None:
    timed(container, build_command(checkpoint, "out"))
    disk = tmp_path / "disk"
    command = [*FOVEATE, "compile", "out", "--force"]
    compile_bundle(disk)
    whole = timed(container, command)
    for seconds, number in moments(whole, seed=41):
        killed(container, command, seconds, number)
        (plan,) = compiled_engines(load(disk, full=True))
        assert plan.self_test["ok"] and plan.fault(load(disk), full=True) is None
    compile_bundle(disk, force=True)
    assert hidden(disk) == []


def test_two_containers_build_into_one_volume(container, checkpoint: Path, tmp_path: Path) -> None:
    """The second one is refused at its start and names the first; the first one's bundle is whole."""
    command = build_command(checkpoint, "out")
    first, _ = container(*command)
    while not list((tmp_path / "disk").glob(".building-*")):
        assert first.poll() is None, (tmp_path / "said").read_text()
        time.sleep(0.01)
    second, _ = container(*command)
    assert second.wait(60) == 1 and first.poll() is None
    assert "foveate build" in (tmp_path / "said").read_text(), "who holds the folder is named"
    assert first.wait(600) == 0
    load(tmp_path / "disk", full=True)
    assert hidden(tmp_path / "disk") == []

"""No network at all: the verbs that a device answers with, in a network namespace without interfaces."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ALONE = ("unshare", "--map-root-user", "--net")
LOOK = "import socket; print(*(name for _, name in socket.if_nameindex()))"


@pytest.fixture(scope="module", autouse=True)
def namespace() -> None:
    """Skips where the system does not give one."""
    if shutil.which("unshare") is None:
        pytest.skip("unshare is not installed")
    done = subprocess.run([*ALONE, sys.executable, "-c", LOOK], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"no network namespace: {done.stderr.strip()}")
    assert done.stdout.split() == ["lo"]  # which is down


def alone(*arguments: object, text: str = "") -> str:
    command = [*ALONE, sys.executable, "-m", "foveate.runtime.cli", *map(str, arguments)]
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("picture") / "picture.png"
    Image.fromarray(np.random.default_rng(5).integers(0, 256, (8, 8, 3), np.uint8)).save(path)
    return path


def test_run_and_chat(bundle: Path, image: Path) -> None:
    """A first turn is what ``run`` answers."""
    options = ("--image", image, "--max-new-tokens", 6)
    answer = alone("run", bundle, "What?", *options)
    first, second, _ = (alone("chat", bundle, *options, text="What?\nLeft?\n") + "\n").split("\n", 2)
    assert first + "\n" == answer and first and second


def test_watch(bundle: Path, tmp_path: Path) -> None:
    cv2 = pytest.importorskip("cv2")
    clip = tmp_path / "clip.avi"
    out = cv2.VideoWriter(str(clip), cv2.VideoWriter_fourcc(*"MJPG"), 30, (64, 64))
    for number in range(10):
        out.write(np.full((64, 64, 3), 20 * number, np.uint8))
    out.release()
    said = alone("watch", bundle, "--video", clip, "--prompt", "What?", "--max-new-tokens", 4, "--count", 1)
    assert said.startswith("[") and "frame" in said

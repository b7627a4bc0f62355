"""Nothing leaves the machine: the verbs of a device on a network and in a home that record.

The network (tests/helpers/recorded_network.py) has an interface, routes and a resolver, so that anything that
would speak does. The controls switch ONNX Runtime's telemetry on, and are caught.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import recorded_network
from cameras import write_clip
from PIL import Image

from foveate.engines import NO_TELEMETRY
from foveate.engines.ort import library
from foveate.engines.ort.backend import VERSION

ALONE = ("unshare", "--map-root-user", "--net", "--mount", sys.executable, recorded_network.__file__)
FOVEATE = (sys.executable, "-m", "foveate.runtime.cli")
ROOT = Path(__file__).parents[2]
KILLED = -31  # by SIGSYS: it opened a socket
COLLECTOR = "microsoft.com"  # the end of the name that ONNX Runtime asks for
# The other variables stay out: ONNX Runtime reports nothing where one of a CI system is set, such as TF_BUILD
# or GITHUB_ACTIONS.
KEPT_VARIABLES = {"PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "PYTHONPATH", "OMP_NUM_THREADS"}
REPORTS = pytest.mark.skipif(
    library.numbers(VERSION) < (1, 29), reason=f"ONNX Runtime {VERSION} reports nothing"
)


@pytest.fixture(scope="module", autouse=True)
def namespaces(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Skips where the system gives none."""
    lacks = [name for name in ("unshare", "mount", "ip") if shutil.which(name) is None]
    if lacks:
        pytest.skip(f"not installed: {', '.join(lacks)}")
    record = tmp_path_factory.mktemp("probe") / "record.json"
    done = subprocess.run([*ALONE, record, "true"], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"no network of its own: {(done.stderr.splitlines() or ['?'])[-1]}")


@dataclass(frozen=True)
class Seen:
    """Return the effects of a command.

    They are exit code, output, names asked for, packets sent, and files left outside of the bundle.
    """

    exit: int
    out: str
    err: str
    names: list[str]
    packets: list[str]
    files: list[str]

    @property
    def silent(self) -> bool:
        return not (self.names or self.packets or self.files)


@pytest.fixture
def watched(tmp_path: Path):
    """``watched(command, text=..., telemetry=..., sockets=...)`` -> Seen, in a fresh home."""

    def run(command, *, text: str = "", telemetry: str | None = None, sockets: bool = False) -> Seen:
        root = tmp_path / "machine"
        shutil.rmtree(root, ignore_errors=True)
        folders = {"HOME": root / "home", "TMPDIR": root / "tmp"}
        folders |= {f"XDG_{name}_HOME": root / f"xdg_{name}" for name in ("CACHE", "CONFIG", "DATA", "STATE")}
        for folder in (*folders.values(), root / "here"):
            folder.mkdir(parents=True)
        variables = {name: value for name, value in os.environ.items() if name in KEPT_VARIABLES}
        variables |= {name: str(folder) for name, folder in folders.items()}
        variables |= {NO_TELEMETRY: telemetry} if telemetry else {}
        record = tmp_path / "record.json"
        guard = [] if sockets else ["--no-sockets"]
        done = subprocess.run(
            [*ALONE, *guard, record, *map(str, command)],
            cwd=root / "here",
            env=variables,
            input=text,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        seen = json.loads(record.read_text())
        left = [str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()]
        return Seen(
            seen["exit"], done.stdout, done.stderr, seen["names"], seen["packets"], left + seen["files"]
        )

    return run


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image.png"
    Image.fromarray(np.random.default_rng(5).integers(0, 256, (8, 8, 3), np.uint8)).save(path)
    return path


def files(bundle: Path) -> set[str]:
    return {path.relative_to(bundle).as_posix() for path in bundle.rglob("*") if path.is_file()}


def test_run_and_chat(watched, bundle: Path, image: Path) -> None:
    """A first turn is what ``run`` answers."""
    before, options = files(bundle), ("--image", image, "--max-new-tokens", 6)
    one = watched([*FOVEATE, "run", bundle, "What?", *options])
    assert one.exit == 0 and one.silent, one
    talk = watched([*FOVEATE, "chat", bundle, *options], text="What?\nLeft?\n")
    assert talk.exit == 0 and talk.silent, talk
    first, second, _ = (talk.out + "\n").split("\n", 2)
    assert first + "\n" == one.out and first and second
    assert files(bundle) == before


def test_compile_and_check(watched, bundle: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(bundle, tmp_path / "copy", ignore=shutil.ignore_patterns("engines"))
    before = files(copy)
    made = watched([*FOVEATE, "compile", copy])
    assert made.exit == 0 and made.silent, made
    assert all(name.startswith("engines/") for name in files(copy) - before) and before < files(copy)
    before = files(copy)
    proved = watched([*FOVEATE, "check", copy])
    assert proved.exit == 0 and proved.silent, proved
    shown = watched([*FOVEATE, "inspect", copy])
    assert shown.exit == 0 and shown.silent, shown
    assert files(copy) == before


def test_doctor(watched) -> None:
    """It asks ONNX Runtime in a process of its own, which is silent too."""
    seen = watched([*FOVEATE, "doctor", "--disk", 0])
    assert seen.silent and f"onnxruntime {VERSION}" in seen.out, seen


def test_watch(watched, bundle: Path, tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.avi", 10, 30, (64, 64), 20)
    options = ("--video", clip, "--prompt", "What?", "--max-new-tokens", 4, "--count", 1)
    seen = watched([*FOVEATE, "watch", bundle, *options])
    assert seen.exit == 0 and seen.silent, seen
    assert seen.out.startswith("[") and "frame" in seen.out


LIBRARY = """
import sys
from foveate.runtime import Pipeline
print(Pipeline.load(sys.argv[1]).generate(sys.argv[2], "What?", max_new_tokens=4).tokens)
"""


def test_the_library(watched, bundle: Path, image: Path) -> None:
    seen = watched([sys.executable, "-c", LIBRARY, bundle, image])
    assert seen.exit == 0 and seen.silent and seen.out.startswith("["), seen


@REPORTS
def test_control_what_reports_is_caught(watched, bundle: Path, image: Path) -> None:
    """The same command with telemetry, which stays on when the user says so, leaves files."""
    command = [*FOVEATE, "run", bundle, "What?", "--image", image, "--max-new-tokens", 2]
    seen = watched(command, telemetry="0")
    assert seen.exit == 0 and any("onnxruntime" in name for name in seen.files), seen


@REPORTS
def test_control_the_resolver_records_the_collector(watched) -> None:
    """Some nine seconds behind the import a thread of ONNX Runtime asks for its collector."""
    command = [sys.executable, "-c", "import time, foveate.engines.ort.backend; time.sleep(12)"]
    seen = watched(command, telemetry="0", sockets=True)
    assert [name for name in seen.names if name.endswith(COLLECTOR)], seen
    assert seen.packets and all(packet.startswith("UDP") for packet in seen.packets)
    assert watched(command, telemetry="0").exit == KILLED  # the socket that it needs for that
    seen = watched(command)
    assert seen.exit == 0 and seen.silent, seen


@pytest.mark.slow
def test_build_from_a_directory(watched, tmp_path: Path) -> None:
    """The host side sends nothing either, with torch and all that it exports with.

    The method needs no other checkpoint.
    """
    options = ("--method", "sppruner", "--precision", "int4", "--out", tmp_path / "built")
    seen = watched([*FOVEATE, "build", "--model", ROOT / "scripts/shapes", *options])
    assert seen.exit == 0 and seen.silent, seen
    seen = watched([*FOVEATE, "bench", tmp_path / "built", "--rounds", 1])
    assert seen.exit == 0 and seen.silent, seen


@pytest.mark.slow
def test_compile_for_rtx(watched, method_bundle, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    copy = shutil.copytree(method_bundle("none"), tmp_path / "copy")
    seen = watched([*FOVEATE, "compile", copy, "--target", "tensorrt-rtx"])
    assert seen.exit == 0 and seen.silent, seen

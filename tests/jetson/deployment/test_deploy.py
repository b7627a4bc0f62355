"""Packing and deploying for real: an OpenSSH server on loopback, rsync, a fresh environment, random kills.

The wheel that is installed is a shim whose ``foveate`` runs the one under test. Everything else is what a
device would see.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import ClassVar

import pytest
from wheels_by_hand import HERE, rename

from foveate.engines.errors import UserError
from foveate.jetson.deployment import deploy as deploying
from foveate.jetson.deployment.deploy import deploy
from foveate.jetson.deployment.remote import Remote
from foveate.runtime.bundle.loading import load
from foveate.runtime.cli import compile as compiling
from foveate.runtime.llm.cache_rows import cache_rows

SSHD = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
KILLS = int(os.environ.get("FOVEATE_KILLS", "2"))
STEPS = ("sending the runtime", "installing the runtime", "sending 20", "installing the bundle", "compiling")
needs_ssh = pytest.mark.skipif(
    not (SSHD and shutil.which("ssh") and shutil.which("rsync")), reason="needs sshd, ssh and rsync"
)


def bring(bundle: Path, shell: str, root: Path, wheels: Path, **options) -> str:
    options = {"say": lambda line: None, **options}
    return deploy(
        bundle,
        Remote("127.0.0.1", shell),
        root=str(root),
        python=sys.executable,
        wheels_in=wheels,
        **options,
    )


@needs_ssh
def test_from_a_bundle_to_an_answer(source: Path, sshd: str, device: Path, wheels: Path) -> None:
    """Then again: nothing is sent twice, and a newer bundle takes the place of the older one."""
    said: list[str] = []
    answer = bring(source, sshd, device, wheels, say=said.append)
    after = said[said.index("compiling for onnxruntime") + 1 :]
    assert after[0].startswith("    ")  # what the compiler says on the device
    name = load(source).manifest.name
    place = device / "bundles" / name
    assert answer and (device / "runtime").is_symlink()
    assert load(place, full=True).manifest == load(source).manifest
    assert list((place / "engines").glob("*/engine.json"))
    inode = (place / "more.data").stat().st_ino
    assert not (device / "incoming" / name).exists()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(deploying, "gather", None)  # nothing is collected
        said.clear()
        assert bring(source, sshd, device, wheels, say=said.append) == answer
    assert "the runtime is there already" in said and "installing the runtime" not in said
    assert (place / "more.data").stat().st_ino == inode
    data = json.loads((source / "bundle.json").read_text())
    data["source"]["revision"] = "newer"
    (source / "bundle.json").write_text(json.dumps(data))
    bring(source, sshd, device, wheels)
    assert load(place, full=True).manifest.source.revision == "newer"
    assert (place / "more.data").stat().st_ino == inode  # linked, not sent again
    assert len(list((device / "runtimes").iterdir())) == 1 and not list((device / "bundles").glob(".*"))


@needs_ssh
def test_killed_at_random_moments(source: Path, sshd: str, tmp_path: Path, wheels: Path) -> None:
    """Everything that runs, here and there, is killed with -9 in each step in turn.

    The bundle in its place is whole each time, and the next run completes. The last one does so on a device
    that was cut off in every step.
    """
    steps, chance = STEPS if len(STEPS) <= KILLS else STEPS[2::2], random.Random(7)
    for first in range(0, KILLS, len(steps)):
        device = tmp_path / f"device{first}"
        for step in steps[: KILLS - first]:
            after = chance.uniform(0, 0.5)
            cut_off(step, after, source, sshd, device, wheels)
            print(f"cut off {after:.2f} s after: {step}")
            intact(device, load(source).manifest.name)
        assert bring(source, sshd, device, wheels)
        intact(device, load(source).manifest.name)


def cut_off(step: str, after: float, source: Path, sshd: str, device: Path, wheels: Path) -> None:
    """Deploy, and kill everything so many seconds after ``step`` began."""
    script = (
        "import sys; from pathlib import Path; from foveate.jetson.deployment.deploy import Remote, deploy; "
        "deploy(Path(sys.argv[1]), Remote('127.0.0.1', sys.argv[2]), root=sys.argv[3], "
        "python=sys.executable, wheels_in=Path(sys.argv[4]))"
    )
    command = [sys.executable, "-c", script, source, f"{sshd} -o ServerAliveInterval=1", device, wheels]
    run = subprocess.Popen(
        list(map(str, command)),
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert any(line.startswith(step) for line in run.stderr)
    time.sleep(after)
    assert run.poll() is None
    os.killpg(run.pid, signal.SIGKILL)
    for process in remains(device):
        os.kill(process, signal.SIGKILL)
    run.wait()


def intact(device: Path, name: str) -> None:
    place = device / "bundles" / name
    if place.exists():
        load(place, full=True)
        for engine in (place / "engines").glob("[!.]*"):
            assert (engine / "engine.json").is_file()
    if (device / "runtime").exists():
        assert (device / "runtime" / "complete").is_file()


def remains(device: Path) -> list[int]:
    """Processes of the device that name its directory: a power cut would end them as well."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            line = (folder / "cmdline").read_bytes().decode(errors="replace")
        except OSError:
            continue
        if f"{device}/" in line and int(folder.name) != os.getpid():
            found.append(int(folder.name))
    return found


@needs_ssh
def test_problems_stop_it_before_the_bundle_is_sent(
    source: Path, sshd: str, device: Path, wheels: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deploying, "_ENGINES", 10**9)
    rename(source, "another")
    with pytest.raises(UserError, match="GB of disk are free"):
        bring(source, sshd, device, wheels)
    assert not (device / "incoming" / "another" / "bundle").exists()


@needs_ssh
def test_an_unreachable_device_is_reported(source: Path, sshd: str, tmp_path: Path, wheels: Path) -> None:
    with pytest.raises(UserError, match=r"cannot reach 127\.0\.0\.1"):
        bring(source, "ssh -p 1 -o ConnectTimeout=2", tmp_path, wheels)
    remote = Remote("127.0.0.1", sshd)
    with pytest.raises(UserError, match="there is no pythonx"):
        deploy(source, remote, root=str(tmp_path), python="pythonx", wheels_in=wheels, say=lambda line: None)


@needs_ssh
def test_rollback_before_the_new_bundle_passed_its_check(
    source: Path, sshd: str, device: Path, wheels: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two new bundles in turn fail to compile: the one that worked, with its engines, comes back."""
    rename(source, "rolled")
    bring(source, sshd, device, wheels)
    place, worked = device / "bundles" / "rolled", load(source).manifest
    data = json.loads((source / "bundle.json").read_text())
    for revision in ("second", "third"):
        data["source"]["revision"] = revision
        (source / "bundle.json").write_text(json.dumps(data))
        with monkeypatch.context() as patch, pytest.raises(UserError, match="--rollback"):
            patch.setattr(deploying, "cache_rows", lambda manifest, rows: -1)
            patch.setattr(deploying, "told", lambda manifest, rows: "")
            patch.setattr(deploying, "options_of", lambda target, given: {"max_context": 1})
            bring(source, sshd, device, wheels)
        assert load(place).manifest.source.revision == revision
    deploying.roll_back(source, Remote("127.0.0.1", sshd), root=str(device), python=sys.executable)
    assert load(place, full=True).manifest == worked
    assert list((place / "engines").glob("*/engine.json"))
    with pytest.raises(UserError, match="there is no previous bundle rolled"):
        deploying.roll_back(source, Remote("127.0.0.1", sshd), root=str(device), python=sys.executable)


class Recorded(Remote):
    """A device with JetPack that only writes down what it is told."""

    commands: ClassVar[list[tuple[str, ...]]] = []

    def run(self, *command: str, each: object = None) -> subprocess.CompletedProcess[str]:
        self.commands.append(command)
        there = {"machine": HERE.machine, "glibc": HERE.glibc, "python": HERE.python, "root": "/there"}
        there |= {"release": "# R36 (release), REVISION: 4.3"}
        said = json.dumps({**there, "findings": []})
        return subprocess.CompletedProcess(command, 1 if command[0] == "cat" else 0, said, "")

    def send(self, source: str, target: str, *arguments: str) -> None:
        self.commands.append(("rsync", target))


def recorded(bundle: Path, wheels: Path, *more: str) -> list[tuple[str, ...]]:
    """Return what a device is told by ``foveate deploy`` with these arguments."""
    Recorded.commands = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(deploying, "Remote", Recorded)
        deploying.main([str(bundle), "jetson", "--wheels", str(wheels), *more])
    return Recorded.commands


def test_max_context_goes_to_the_compiler(make_bundle, wheels: Path) -> None:
    """It is the number that ``foveate compile`` and ``foveate plan`` choose, at most the model's limit."""
    root = make_bundle()
    most = load(root).manifest.decoder.max_positions
    default = cache_rows(load(root).manifest)
    assert 96 < most < 1536 and default <= most
    for given, expected in ((["--max-context", "96"], 96), (["--max-context", "1536"], most), ([], default)):
        commands = recorded(root, wheels, *given)
        (command,) = (each for each in commands if each[1] == "compile")
        asked = compiling._parser().parse_args(command[2:])
        assert (asked.target, asked.max_context) == ("tensorrt", expected)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--max-context", "0"], "wrong max context"),
        (["--target", "onnxruntime", "--max-context", "99"], "--max-context is not an option of onnxruntime"),
        (["--target", "tensort"], "unknown target"),
    ],
)
def test_the_compilers_refusals_come_before_anything_is_sent(
    make_bundle, wheels: Path, more: list[str], words: str
) -> None:
    with pytest.raises(UserError, match=words) as error:
        recorded(make_bundle(), wheels, *more)
    assert error.value.code == 2
    assert [command[:2] for command in Recorded.commands] == [("python3", "-c")]


@pytest.mark.parametrize(
    ("device", "extras"),
    (("nano", ["cuda-python>=12,<12.7"]), ("agx", ["cuda-bindings>=13,<13.3"]), ("", [])),
)
def test_a_jetson_gets_the_bindings_of_its_cuda(recorded, device: str, extras: list[str]) -> None:
    release = recorded(device).read("/etc/nv_tegra_release") or ""
    there = {"machine": "aarch64", "python": "3.10", "glibc": "2.35", "release": release}
    assert deploying._target(there).extras == extras

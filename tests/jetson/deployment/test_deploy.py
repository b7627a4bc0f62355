"""Packing and deploying for real: an OpenSSH server on loopback, rsync, a fresh environment, random kills.

The wheel that is installed is a shim whose ``foveate`` runs the one under test. Everything else is what a
device would see.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import platform
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import pytest

from foveate.engines.errors import UserError
from foveate.jetson.deployment import deploy as deploying
from foveate.jetson.deployment.deploy import Remote, deploy
from foveate.jetson.deployment.pack import contents, pack
from foveate.jetson.deployment.wheels import Target, holds, requirements
from foveate.runtime.bundle.loading import load
from foveate.runtime.cli import compile as compiling

SSHD = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
KILLS = int(os.environ.get("FOVEATE_KILLS", "2"))
STEPS = ("sending the runtime", "installing the runtime", "sending 20", "installing the bundle", "compiling")
needs_ssh = pytest.mark.skipif(
    not (SSHD and shutil.which("ssh") and shutil.which("rsync")), reason="needs sshd, ssh and rsync"
)
HERE = Target(platform.machine(), "{}.{}".format(*sys.version_info[:2]), platform.libc_ver()[1] or "2.35")


def make_wheel(folder: Path, name: str, files: dict[str, str], requires: tuple[str, ...] = ()) -> Path:
    info = f"{name}-0.1.0.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: 0.1.0\n"
    files = files | {
        f"{info}/METADATA": metadata + "".join(f"Requires-Dist: {need}\n" for need in requires),
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    rows = []
    for path, text in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
        rows.append(f"{path},sha256={digest},{len(text.encode())}")
    files[f"{info}/RECORD"] = "\n".join([*rows, f"{info}/RECORD,,", ""])
    wheel = folder / f"{name}-0.1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for path, text in files.items():
            archive.writestr(path, text)
    return wheel


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pip's own wheel, packed from this environment, and the shim."""
    folder = tmp_path_factory.mktemp("wheels")
    import pip

    root = Path(pip.__file__).parent
    with zipfile.ZipFile(folder / "pip-0-py3-none-any.whl", "w") as archive:
        for path in root.rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                archive.write(path, Path("pip", path.relative_to(root)))
    shim = (
        "import os, sys\n"
        "def main():\n"
        f"    command = [{sys.executable!r}, '-m', 'foveate.runtime.cli', *sys.argv[1:]]\n"
        "    os.execv(command[0], command)\n"
    )
    make_wheel(
        folder,
        "foveate",
        {
            "foveate_shim.py": shim,
            "foveate-0.1.0.dist-info/entry_points.txt": "[console_scripts]\nfoveate = foveate_shim:main\n",
        },
    )
    return folder


@pytest.fixture(scope="module")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The ssh command that reaches a server on loopback."""
    folder = tmp_path_factory.mktemp("ssh")
    for name in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name], check=True)
    shutil.copy(folder / "user.pub", folder / "authorized")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    config = folder / "config"
    config.write_text(
        f"Port {port}\nListenAddress 127.0.0.1\n"
        f"HostKey {folder}/host\nAuthorizedKeysFile {folder}/authorized\n"
        f"PidFile {folder}/pid\nStrictModes no\nUsePAM no\nPasswordAuthentication no\nPermitRootLogin yes\n"
    )
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)
    server = subprocess.Popen([SSHD, "-D", "-e", "-f", config], stderr=subprocess.DEVNULL)
    options = (
        f"-p {port} -i {folder}/user -o StrictHostKeyChecking=no -o UserKnownHostsFile={folder}/known "
        "-o LogLevel=ERROR"
    )
    for _ in range(50):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                break
        time.sleep(0.1)
    yield f"ssh {options}"
    server.terminate()
    server.wait()


@pytest.fixture(scope="module")
def device(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One device for all tests that need no fresh one: its runtime is installed once."""
    return tmp_path_factory.mktemp("device")


def rename(source: Path, name: str) -> None:
    data = json.loads((source / "bundle.json").read_text())
    (source / "bundle.json").write_text(json.dumps(data | {"name": name}))


def bring(bundle: Path, shell: str, root: Path, wheels: Path, **options) -> str:
    said: list[str] = []
    return deploy(
        bundle,
        Remote("127.0.0.1", shell),
        root=str(root),
        python=sys.executable,
        wheels_in=wheels,
        say=said.append,
        **options,
    )


@pytest.fixture
def source(make_bundle, tmp_path: Path) -> Path:
    """A bundle that was not compiled, with 20 MB more in it, so that there is something to interrupt."""
    root = shutil.copytree(make_bundle(), tmp_path / "source")
    (root / "more.data").write_bytes(random.Random(0).randbytes(20_000_000))
    data = json.loads((root / "bundle.json").read_text())
    content = (root / "more.data").read_bytes()
    data["files"]["more.data"] = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (root / "bundle.json").write_text(json.dumps(data))
    return root


@needs_ssh
def test_from_a_bundle_to_an_answer(source: Path, sshd: str, device: Path, wheels: Path) -> None:
    """Then again: nothing is sent twice, and a newer bundle takes the place of the older one."""
    answer = bring(source, sshd, device, wheels)
    name = load(source).manifest.name
    place = device / "bundles" / name
    assert answer and (device / "runtime").is_symlink()
    assert load(place, full=True).manifest == load(source).manifest
    assert list((place / "engines").glob("*/engine.json"))
    inode = (place / "more.data").stat().st_ino
    assert bring(source, sshd, device, wheels) == answer
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
        "import sys; from pathlib import Path; from foveate.jetson.deployment.deploy import *; "
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
def test_what_cannot_be_reached_is_said(source: Path, sshd: str, tmp_path: Path, wheels: Path) -> None:
    with pytest.raises(UserError, match=r"cannot reach 127\.0\.0\.1"):
        bring(source, "ssh -p 1 -o ConnectTimeout=2", tmp_path, wheels)
    remote = Remote("127.0.0.1", sshd)
    with pytest.raises(UserError, match="no usable pythonx"):
        deploy(source, remote, root=str(tmp_path), python="pythonx", wheels_in=wheels, say=lambda line: None)


class Recorded(Remote):
    """A device with JetPack that only writes down what it is told."""

    commands: ClassVar[list[tuple[str, ...]]] = []

    def run(self, *command: str, show: bool = False) -> subprocess.CompletedProcess[str]:
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
    for given, expected in ((["--max-context", "1536"], 1536), ([], None)):
        commands = recorded(make_bundle(), wheels, *given)
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
def test_what_the_compiler_would_refuse_is_said_before_anything_is_sent(
    make_bundle, wheels: Path, more: list[str], words: str
) -> None:
    with pytest.raises(UserError, match=words) as error:
        recorded(make_bundle(), wheels, *more)
    assert error.value.code == 2
    assert [command[:2] for command in Recorded.commands] == [("python3", "-c")]


def install(packed: Path, root: Path, *more: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(packed), "--to", str(root), *more]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_a_pack_installs_from_one_file(source: Path, tmp_path: Path, device: Path, wheels: Path) -> None:
    packed, root = tmp_path / "it.pyz", device
    rename(source, "packed")
    pack(source, HERE, packed, wheels)
    done = install(packed, root)
    assert done.returncode == 0, done.stderr
    name = load(source).manifest.name
    assert load(root / "bundles" / name, full=True).manifest == load(source).manifest
    said = subprocess.run(
        [root / "runtime/bin/foveate", "--version"], capture_output=True, text=True, check=True
    )
    assert said.stdout.startswith("foveate ")
    ask = "import os; print(os.environ['ORT_DISABLE_TELEMETRY'])"  # of any program, before it imports foveate
    bare = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    for given, expected in ({}, "1"), ({"ORT_DISABLE_TELEMETRY": "0"}, "0"):
        python = [root / "runtime/bin/python", "-c", ask]
        assert subprocess.check_output(python, env=bare | given, text=True).strip() == expected
    before = (root / "runtime").resolve().stat().st_mtime_ns
    assert install(packed, root).returncode == 0  # nothing to do
    assert (root / "runtime").resolve().stat().st_mtime_ns == before


def test_a_damaged_pack_leaves_what_was_there(
    source: Path, tmp_path: Path, device: Path, wheels: Path
) -> None:
    packed, root = tmp_path / "it.pyz", device
    rename(source, "damaged")
    pack(source, HERE, packed, wheels)
    content = bytearray(packed.read_bytes())
    at = content.find((source / "more.data").read_bytes()[1000:1064])
    content[at] ^= 1
    packed.write_bytes(content)
    done = install(packed, root)
    assert done.returncode == 1 and "not installed" in done.stderr
    assert not (root / "bundles" / load(source).manifest.name).exists()
    pack(source, HERE, packed, wheels)
    assert install(packed, root).returncode == 0


def test_a_pack_for_another_machine_is_refused(source: Path, tmp_path: Path, wheels: Path) -> None:
    packed = tmp_path / "it.pyz"
    pack(source, Target("riscv64", "3.99", "2.35"), packed, wheels)
    done = install(packed, tmp_path / "device")
    assert done.returncode == 1 and "it is for machine riscv64" in done.stderr
    assert not (tmp_path / "device").exists()


def test_an_empty_root_is_not_the_current_folder(capsys: pytest.CaptureFixture[str]) -> None:
    from foveate.jetson.deployment import installer

    with pytest.raises(SystemExit, match="2"):
        installer.main(["--to", ""])
    assert "--to: the value is empty" in capsys.readouterr().err


def test_a_bundle_that_a_compilation_writes_into_is_not_replaced(tmp_path: Path) -> None:
    from foveate.engines.disk import locks
    from foveate.jetson.deployment import installer

    with (
        locks.held(locks.inside(tmp_path), "foveate compile", refused="", remedy=""),
        pytest.raises(ValueError, match="in use: a compilation writes into it"),
        installer._unused(tmp_path),
    ):
        pytest.fail("it was replaced")
    with installer._unused(tmp_path):
        pass


@pytest.mark.parametrize(
    ("condition", "python", "expected"),
    (
        ("python_version < '3.11'", "3.10", True),
        ("python_version < '3.11'", "3.12", False),
        ("python_version >= '3.9'", "3.10", True),
        ('extra == "dev" and python_version > "3"', "3.10", False),
        (
            "sys_platform == 'win32' or (platform_machine == 'aarch64' and python_version < '3.11')",
            "3.10",
            True,
        ),
        ("platform_system != 'Darwin'", "3.12", True),
        ("'3.11' > python_version", "3.10", True),
    ),
)
def test_conditions_of_requirements(condition: str, python: str, expected: bool) -> None:
    assert holds(condition, Target("aarch64", python, "2.35").environment) is expected


def test_requirements_of_a_wheel(tmp_path: Path) -> None:
    needs = (
        "numpy>=1.24",
        "tomli; python_version < '3.11'",
        "torch; extra == 'export'",
        "x-y (>=2) ; os_name == 'posix'",
    )
    wheel = make_wheel(tmp_path, "thing", {}, needs)
    assert requirements(wheel, Target("aarch64", "3.10", "2.35")) == ["numpy>=1.24", "tomli", "x-y (>=2)"]
    assert requirements(wheel, Target("aarch64", "3.12", "2.39")) == ["numpy>=1.24", "x-y (>=2)"]
    assert Target("aarch64", "3.10", "2.35").platforms[0] == "manylinux_2_35_aarch64"


@pytest.mark.parametrize(
    ("device", "extras"), (("nano", ["cuda-bindings==12.*"]), ("agx", ["cuda-bindings==13.*"]), ("", []))
)
def test_a_jetson_gets_the_bindings_of_its_cuda(recorded, device: str, extras: list[str]) -> None:
    release = recorded(device).read("/etc/nv_tegra_release") or ""
    there = {"machine": "aarch64", "python": "3.10", "glibc": "2.35", "release": release}
    assert deploying._target(there).extras == extras


def test_what_has_a_wheel_is_installed(source: Path, tmp_path: Path) -> None:
    for name in ("foveate", "cuda_bindings"):
        make_wheel(tmp_path, name, {})
    assert contents(source, "it", tmp_path, HERE)["install"] == ["foveate", "cuda-bindings"]


def test_a_pack_shows_the_licences_in_it(source: Path, tmp_path: Path, capsys) -> None:
    make_wheel(tmp_path, "foveate", {})
    copy = shutil.copytree(source, tmp_path / "bundle")
    manifest = json.loads((copy / "bundle.json").read_text())
    each = {"source": "a/b", "id": "cc-by-nc-4.0", "use": "non-commercial", "files": []}
    (copy / "bundle.json").write_text(json.dumps(manifest | {"licence": {"model": each}}))
    pack(copy, HERE, tmp_path / "it.pyz", tmp_path)
    assert "licence of the model a/b: cc-by-nc-4.0 (not for commercial use)" in capsys.readouterr().err

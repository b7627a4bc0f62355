"""A server, a device and wheels for deployments; a bundle with something to interrupt in it."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import socket
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from wheels_by_hand import make_wheel

SSHD = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin")


@pytest.fixture(scope="session")
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


@pytest.fixture(scope="session")
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


@pytest.fixture(scope="session")
def device(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One device for all tests that need no fresh one: its runtime is installed once."""
    return tmp_path_factory.mktemp("device")


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

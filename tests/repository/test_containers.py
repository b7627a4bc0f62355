"""Commands in the Dockerfiles, and the systemd unit. Nothing is built or started."""

from __future__ import annotations

import importlib
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from foveate.runtime.cli import VERBS

FOLDER = Path(__file__).parents[2] / "jetson/docker"
DOCKERFILES = ("Dockerfile.jetpack6", "Dockerfile.jetpack7")


def commands(name: str) -> list[list[str]]:
    """Return the commands in a Dockerfile's header, each as words. They are indented by three blanks."""
    lines = re.findall(r"^#   (.*)$", (FOLDER / name).read_text(), re.MULTILINE)
    whole = "\n".join(lines).replace("\\\n", " ").replace("&&", "\n").splitlines()
    return [shlex.split(line) for line in whole]


def verbs(name: str) -> list[list[str]]:
    """Return the verbs with their arguments that are run in the image ``foveate:...``."""
    runs = [words for words in commands(name) if words[:2] == ["docker", "run"]]
    image = name.replace("Dockerfile.", "foveate:")
    return [words[words.index(image) + 1 :] for words in runs]


@pytest.mark.parametrize("name", DOCKERFILES)
def test_the_header_goes_from_the_pack_to_a_checked_bundle(name, capsys):
    told = verbs(name) + [words[1:] for words in commands(name) if words[0] == "foveate"]
    assert {"pack", "compile", "check"} <= {verb for verb, *_ in told}
    assert any(words[:2] == ["docker", "build"] for words in commands(name))
    for verb, *arguments in told:
        with pytest.raises(SystemExit):
            importlib.import_module(VERBS[verb][0]).main(["--help"])
        known = set(re.findall(r"--[a-z-]+", capsys.readouterr().out))
        assert {each for each in arguments if each.startswith("--")} <= known, verb


def test_running_watching_and_old_volumes():
    text = (FOLDER / "Dockerfile.jetpack6").read_text()
    shown = [verb for verb, *_ in verbs("Dockerfile.jetpack6")]
    assert shown == ["doctor", "compile", "check", "run", "watch"]
    (watch,) = [words for words in commands("Dockerfile.jetpack6") if "watch" in words]
    assert watch[watch.index("--device") + 1] == "/dev/video0"
    assert ["docker", "volume", "rm", "foveate"] in commands("Dockerfile.jetpack6")
    assert "An old volume hides the bundle of a new image" in text


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_systemd_takes_the_unit(tmp_path):
    """With a program that is there, since ``verify`` looks for it."""
    unit = tmp_path / "foveate-watch.service"
    text = (FOLDER / unit.name).read_text()

    def verified(content: str) -> str:
        unit.write_text(content.replace("/home/jetson/foveate/runtime/bin/foveate", "/bin/true"))
        done = subprocess.run(
            ["systemd-analyze", "verify", str(unit)], capture_output=True, text=True, check=False
        )
        return done.stdout + done.stderr

    if "MemoryMost" not in (said := verified(text.replace("MemoryMax", "MemoryMost"))):
        pytest.skip(f"systemd-analyze finds no unknown key here: {said}")
    assert unit.name not in verified(text)

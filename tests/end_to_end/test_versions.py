"""The oldest and the newest declared versions answer the same, in fresh environments."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import tomllib
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
QUESTIONS = ("What letter is on the sign?", "What colour is the triangle?")


def pinned(python: str, *, oldest: bool, extra: str | None = None) -> list[str]:
    """Return pip's requirements for ``python`` ("3.11"): the least version of each, or the newest."""
    declared = [*PROJECT["dependencies"], *(PROJECT["optional-dependencies"][extra] if extra else ())]
    found = []
    for text in declared:
        requirement = Requirement(text)
        if requirement.marker and not requirement.marker.evaluate({"python_version": python}):
            continue
        (floor,) = [each.version for each in requirement.specifier if each.operator == ">="]
        found.append(f"{requirement.name}{requirement.specifier if not oldest else f'=={least(floor)}'}")
    return found


def least(floor: str) -> str:
    """The version that ``>=floor`` begins with: "1.28" is 1.28.0."""
    return floor + ".0" * (2 - floor.count("."))


def test_the_requirements_are_read_from_the_project():
    old = pinned("3.11", oldest=True)
    assert {line.split("==")[0] for line in old} == {"numpy", "pillow", "tokenizers", "onnxruntime"}
    assert "onnxruntime==1.28.0" in old and "onnxruntime==1.23.0" in pinned("3.10", oldest=True)
    assert all("==" not in line for line in pinned("3.11", oldest=False))
    assert "onnxscript==0.7.2" in pinned("3.11", oldest=True, extra="export")


def start(
    command: list[str | Path], text: str | None = None, first: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command without this environment's packages, and without the folder that it was started in.

    ``first`` is a folder with packages that hide those of the command's environment.
    """
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"OMP_NUM_THREADS": "1"} | ({"PYTHONPATH": str(first)} if first else {})
    return subprocess.run(
        [*map(str, command)],
        input=text,
        cwd="/",
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def run(command: list[str | Path], text: str | None = None, first: Path | None = None) -> str:
    """Return what a command prints. It must succeed. See ``start``."""
    done = start(command, text, first)
    assert done.returncode == 0, f"{command}\n{done.stdout[-1000:]}\n{done.stderr[-3000:]}"
    return done.stdout


def environment(folder: Path, python: str, requirements: list[str]) -> Path:
    """The ``bin`` of a new environment with foveate and exactly these."""
    run([python, "-m", "venv", folder])
    pip = [folder / "bin/python", "-m", "pip", "install", "--quiet"]
    run([*pip, *requirements])
    source = folder / "source"
    source.mkdir()
    for name in ("calib", "engines", "export", "jetson", "runtime"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    run([*pip, "--no-deps", source])
    run(
        [folder / "bin/python", "-m", "pip", "check"]
    )  # the declared versions go together, foveate's among them
    return folder / "bin"


def answers(place: Path, bundle: Path, copy: Path) -> list[str]:
    """Answers of two turns of a chat, after ``compile`` and ``check``."""
    shutil.copytree(bundle, copy, ignore=shutil.ignore_patterns("engines"))
    foveate = place / "foveate"
    run([foveate, "compile", copy])
    assert "fine: " in run([foveate, "check", copy])
    options = ["--image", ROOT / "docs/scene.png", "--keep", "64", "--max-new-tokens", "24"]
    said = run([foveate, "chat", copy, *options], "\n".join(QUESTIONS) + "\n")
    return said.splitlines()[: len(QUESTIONS)]


def interpreters() -> list[str]:
    """Return the Python versions to try: this one, and Python 3.10 (JetPack 6) where it is."""
    return [f"{sys.version_info[0]}.{sys.version_info[1]}", "3.10"]


def interpreter(version: str) -> str:
    if version == "{}.{}".format(*sys.version_info[:2]):
        return getattr(sys, "_base_executable", sys.executable)
    for name in (
        f"python{version}",
        *sorted(map(str, Path.home().glob(f".pyenv/versions/{version}*/bin/python"))),
    ):
        done = (
            subprocess.run(
                [name, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"],
                capture_output=True,
                text=True,
                check=False,
            )
            if shutil.which(name)
            else None
        )
        if done and done.stdout.strip() == version:
            return name
    pytest.skip(f"there is no Python {version}")


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small trained model, of every dialect, so that its answers mean something."""
    out = tmp_path_factory.mktemp("shapes") / "bundle"
    options = ["--method", "sppruner", "--precision", "fp32", "--no-compile", "--out", out]
    run([sys.executable, "-m", "foveate.runtime.cli", "build", "--model", ROOT / "scripts/shapes", *options])
    return out


@pytest.fixture(scope="module")
def newest(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("newest")
    place = environment(
        folder / "venv", interpreter(interpreters()[0]), pinned(interpreters()[0], oldest=False)
    )
    return answers(place, shapes, folder / "bundle")


@pytest.mark.slow
def test_the_newest_answer_well(newest):
    assert newest == ["T", "red"]


@pytest.mark.slow
@pytest.mark.parametrize("python", interpreters())
def test_the_oldest_answer_as_the_newest(shapes, newest, tmp_path, python):
    place = environment(tmp_path / "venv", interpreter(python), pinned(python, oldest=True))
    assert answers(place, shapes, tmp_path / "bundle") == newest


@pytest.mark.slow
@pytest.mark.parametrize("name", ["numpy", "pillow", "tokenizers", "onnxruntime"])
def test_each_oldest_among_the_newest(shapes, newest, tmp_path, name):
    """One library alone is old, so that an answer that differs names it."""
    version = interpreters()[0]
    mixed = [
        old if old.split("==")[0] == name else new
        for old, new in zip(pinned(version, oldest=True), pinned(version, oldest=False), strict=True)
    ]
    place = environment(tmp_path / "venv", interpreter(version), mixed)
    assert answers(place, shapes, tmp_path / "bundle") == newest


@pytest.mark.slow
def test_the_oldest_of_the_host_side_build_what_the_oldest_runtime_answers(newest, tmp_path):
    """``foveate build`` works with the least versions of the extra ``export`` and of the device side."""
    version = interpreters()[0]
    requirements = pinned(version, oldest=True, extra="export")
    place = environment(tmp_path / "venv", interpreter(version), requirements)
    options = ["--method", "sppruner", "--precision", "fp32", "--no-compile", "--out", tmp_path / "built"]
    run([place / "foveate", "build", "--model", ROOT / "scripts/shapes", *options])
    assert answers(place, tmp_path / "built", tmp_path / "bundle") == newest


@pytest.fixture(scope="module")
def device(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The ``bin`` of an environment with the newest versions."""
    version = interpreters()[0]
    folder = tmp_path_factory.mktemp("device") / "venv"
    return environment(folder, interpreter(version), pinned(version, oldest=False))


def exchanged(device: Path, folder: Path, requirement: str) -> Path:
    """A folder with another onnxruntime alone, which hides the one of ``device``."""
    run([device / "python", "-m", "pip", "install", "--quiet", "--no-deps", "--target", folder, requirement])
    return folder


SERVING = ("1.28.0", "1.29.0", "1.30.0", "1.31.0", "1.31.1", "1.32.0")
REFUSED = {
    "1.24.4": "does not take llm.ort.onnx",
    "1.25.1": "logits, in pieces: cosine",
    "1.26.0": "logits, in pieces: cosine",
    "1.27.0": "logits, in pieces: cosine",
}


@pytest.mark.slow
@pytest.mark.parametrize("version", SERVING)
def test_the_self_test_passes_in_every_onnx_runtime_that_serves(device, shapes, tmp_path, version):
    other = exchanged(device, tmp_path / "other", f"onnxruntime=={version}")
    for dialect in ("ort", "primitive"):
        copy = shutil.copytree(shapes, tmp_path / dialect, ignore=shutil.ignore_patterns("engines"))
        run([device / "foveate", "compile", copy, "--dialect", dialect], first=other)
        assert f"engine onnxruntime-{version}" in run([device / "foveate", "check", copy], first=other)


@pytest.mark.slow
@pytest.mark.parametrize("version", REFUSED)
def test_an_older_onnx_runtime_is_refused_and_the_self_test_knows_why(device, shapes, tmp_path, version):
    """Refused by name. Without that, the self-test finds out."""
    other = exchanged(device, tmp_path / "other", f"onnxruntime=={version}")
    copy = shutil.copytree(shapes, tmp_path / "bundle", ignore=shutil.ignore_patterns("engines"))
    command = ["compile", str(copy), "--dialect", "ort"]
    refused = start([device / "foveate", *command], first=other)
    assert refused.returncode == 1 and f"ONNX Runtime {version}" in refused.stderr
    assert "pip install -U onnxruntime" in refused.stderr
    forced = "from foveate.engines.ort import library; library.OLDEST_FOR_ORT = (0,)"
    code = f"{forced}; from foveate.runtime import cli; raise SystemExit(cli.main({command!r}))"
    tested = start([device / "python", "-c", code], first=other)
    assert tested.returncode == 1 and REFUSED[version] in tested.stderr, tested.stderr
    run([device / "foveate", "compile", copy], first=other)
    assert "fine: " in run([device / "foveate", "check", copy], first=other)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("nvidia-smi") is not None, reason="there is a GPU")
def test_onnxruntime_gpu_without_cuda_is_refused_by_name(device, shapes, tmp_path):
    other = exchanged(device, tmp_path / "other", "onnxruntime-gpu>=1.28")
    copy = shutil.copytree(shapes, tmp_path / "bundle", ignore=shutil.ignore_patterns("engines"))
    for more in ([], ["--no-self-test"]):
        command = [device / "foveate", "compile", copy, "--provider", "cuda", *more]
        done = start(command, first=other)
        assert done.returncode == 1 and "Traceback" not in done.stdout + done.stderr
        assert "cannot use the GPU | libcublas" in done.stderr and "libcuda.so.1" in done.stderr
        assert "pip install 'onnxruntime-gpu[cuda,cudnn]'" in done.stderr
        assert not list(copy.glob("engines/*cuda*"))

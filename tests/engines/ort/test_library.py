"""Versions of ONNX Runtime that serve, and messages about one that is half removed or hidden.

A folder of its name hides it.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
import tomllib

from foveate.engines.errors import UserError
from foveate.engines.ort import backend as ort
from foveate.engines.ort import library
from foveate.runtime.bundle.compiled import choose
from foveate.runtime.bundle.loading import load
from foveate.runtime.compiling.compile import compile_bundle

ROOT = Path(__file__).parents[3]
SITE = Path(onnx.__file__).parents[1]


def test_the_declared_version_is_the_one_that_serves():
    dependencies = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    floors = dict(
        re.findall(r"onnxruntime>=(\d+\.\d+); python_version (>=|<) '3.11'", "\n".join(dependencies))
    )
    assert floors == {
        ".".join(map(str, library.OLDEST_FOR_ORT)): ">=",
        ".".join(map(str, library.OLDEST)): "<",
    }


@pytest.mark.parametrize(
    ("version", "why"),
    [
        ("1.23.2", "lacks a kernel"),
        ("1.24.4", "lacks a kernel"),
        ("1.25.1", "answers wrongly"),
        ("1.27.0", "answers wrongly"),
        ("1.28.0", None),
        ("1.32.0", None),
        ("2.0.0", None),
    ],
)
def test_the_dialect_ort_by_version(version, why):
    said = library.refused_dialect("ort", version)
    assert said is None if why is None else why in said and version in said and "1.28 or newer" in said
    assert library.refused_dialect("primitive", version) is None


def test_an_older_version_is_exchanged_by_a_newer_one_where_there_is_one():
    assert library.upgrade(python=(3, 11)) == "pip install -U onnxruntime"
    cuda = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    assert library.upgrade(cuda, python=(3, 12)) == "pip install -U 'onnxruntime-gpu[cuda,cudnn]'"
    assert "--dialects primitive" in library.upgrade(python=(3, 10))


def test_the_readme_has_the_commands_for_cuda():
    assert library.INSTALL_CUDA in (ROOT / "README.md").read_text()


@pytest.fixture
def old(monkeypatch):
    """ONNX Runtime 1.27.0 is what this process has, as far as the backend knows."""
    monkeypatch.setattr(ort, "VERSION", "1.27.0")


def test_an_engine_of_the_dialect_ort_is_not_loaded_by_an_older_one(method_bundle, tmp_path, monkeypatch):
    """An engine of a foveate that still compiled it: it fits the machine, and would answer wrongly."""
    bundle = shutil.copytree(method_bundle("none"), tmp_path / "copy")
    compile_bundle(bundle, dialect="ort")
    plan = choose(load(bundle), "onnxruntime")
    assert plan.dialect == "ort"
    record = plan.path / "engine.json"
    record.write_text(record.read_text().replace(f'"version": "{ort.VERSION}"', '"version": "1.27.0"'))
    monkeypatch.setattr(ort, "VERSION", "1.27.0")
    with pytest.raises(UserError, match=r"answers wrongly .* \| foveate compile"):
        choose(load(bundle), "onnxruntime")


def test_an_older_one_takes_the_dialect_primitive(method_bundle, tmp_path, old):
    bundle = shutil.copytree(
        method_bundle("none"), tmp_path / "copy", ignore=shutil.ignore_patterns("engines")
    )
    compile_bundle(bundle)
    assert choose(load(bundle)).dialect == "primitive"
    with pytest.raises(
        UserError, match=r"dialect ort \| ONNX Runtime 1\.27\.0 answers wrongly .*\| pip install -U"
    ):
        compile_bundle(bundle, dialect="ort", force=True)


def test_a_bundle_without_it_names_the_remedy(bundle, tmp_path, old):
    copy = shutil.copytree(bundle, tmp_path / "copy", ignore=shutil.ignore_patterns("engines"))
    with pytest.raises(UserError, match=r"ONNX Runtime 1\.27\.0 answers wrongly .*\| pip install -U"):
        compile_bundle(copy)


@pytest.fixture
def without(tmp_path):
    """``without(*command, first)`` runs a Python that finds every package here but onnxruntime.

    ``first`` is a path that is searched before site-packages.
    """
    packages = tmp_path / "site-packages"
    packages.mkdir()
    for each in SITE.iterdir():
        if not each.name.startswith(("onnxruntime", "__editable__")) and each.suffix != ".pth":
            (packages / each.name).symlink_to(each)
    (packages / "foveate").mkdir()
    for name in ("calib", "engines", "export", "jetson", "runtime"):
        (packages / "foveate" / name).symlink_to(ROOT / name)

    def run(*command: object, first: Path | None = None) -> subprocess.CompletedProcess[str]:
        places = [str(place) for place in (first, packages) if place]
        start = f"import sys; sys.path[:] = [p for p in sys.path if p != {str(SITE)!r} and p]"
        start += f"; sys.path[:0] = {places!r}; from foveate.runtime import cli"
        code = f"{start}; sys.exit(cli.main({[str(word) for word in command]!r}))"
        python = [sys.executable, "-S", "-c", code]
        return subprocess.run(python, capture_output=True, text=True, check=False, env=dict(os.environ))

    return run


def verbs(bundle: Path) -> list[tuple[object, ...]]:
    return [
        ("compile", bundle, "--force"),
        ("run", bundle, "What?", "--image", ROOT / "docs/scene.png"),
        ("check", bundle),
        ("doctor", "--disk", 0),
    ]


@pytest.mark.parametrize("number", range(4), ids=("compile", "run", "check", "doctor"))
@pytest.mark.parametrize("left", ["capi", "__init__"])
def test_one_that_is_half_removed_is_explained(without, bundle, tmp_path, left, number):
    """``capi``: pip left a folder without Python in it. ``__init__``: the compiled library is gone."""
    folder = tmp_path / "site-packages/onnxruntime"
    (folder / "capi").mkdir(parents=True)
    if left == "__init__":
        installed = Path(ort.onnxruntime.__file__)
        shutil.copy(installed, folder)
        for file in (installed.parent / "capi").glob("*.py"):
            shutil.copy(file, folder / "capi")
    done = without(*verbs(bundle)[number])
    said = done.stdout + done.stderr
    assert done.returncode == 1 and "Traceback" not in said
    assert "onnxruntime cannot be imported" in said and str(folder) in said
    assert f"rm -r {folder} && pip install --force-reinstall onnxruntime" in said


@pytest.mark.parametrize("number", range(4), ids=("compile", "run", "check", "doctor"))
@pytest.mark.parametrize("package", [True, False], ids=("package", "folder"))
def test_one_that_is_hidden_is_explained(without, bundle, tmp_path, package, number):
    """A folder of that name lies where Python was started.

    It is that of ONNX Runtime's own repository, or somebody's results.
    """
    folder = tmp_path / "work/onnxruntime"
    folder.mkdir(parents=True)
    if package:
        (folder / "__init__.py").write_text("from .capi import _pybind_state\n")
    done = without(*verbs(bundle)[number], first=tmp_path / "work")
    said = done.stdout + done.stderr
    assert done.returncode == 1 and "Traceback" not in said
    assert f"{folder} hides the library onnxruntime" in said and "start from another folder" in said


def test_one_that_is_not_there_is_named(without, bundle):
    done = without("compile", bundle, "--force")
    assert "needs onnxruntime | it is not installed | pip install onnxruntime" in done.stderr

"""The package as it is built and installed: nothing is missing, shadowed, or leaks into site-packages."""

from __future__ import annotations

import importlib
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from importlib.metadata import distribution, entry_points
from pathlib import Path

import pytest
import tomllib

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
TOP = ("calib", "engines", "export", "jetson", "runtime")
RUN_BY_PATH = (
    "export",
    "scripts",
    "scripts/shapes",
    "jetson",
)  # directories that a script of theirs puts on sys.path


REGISTER = "optimum.commands.register"  # a namespace package of Hugging Face's optimum: it has no __init__.py
REGISTERED = ROOT / "export/optimum_cli"  # what we put there


def on_disk() -> set[str]:
    """Every subpackage, e.g. ``foveate.export.lowering``."""
    found = (p.parent.relative_to(ROOT) for top in TOP for p in (ROOT / top).rglob("__init__.py"))
    return {".".join(("foveate", *p.parts)) for p in found}


def run(*command: str | Path, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*map(str, command)], cwd=cwd, env=os.environ | variables, capture_output=True, text=True, check=False
    )


def test_every_subpackage_is_listed():
    """One that is not works from a checkout and is missing from the wheel."""
    settings = PROJECT["tool"]["setuptools"]
    assert set(settings["packages"]) == on_disk() | {REGISTER}
    assert settings["package-dir"] == {"foveate": ".", REGISTER: REGISTERED.relative_to(ROOT).as_posix()}
    for top in TOP:
        for path in (ROOT / top).rglob("*.py"):
            if path.parent == REGISTERED:
                continue
            assert (path.parent / "__init__.py").is_file(), f"{path.parent} has modules but no __init__.py"


def test_the_root_is_a_namespace():
    assert not (ROOT / "__init__.py").exists() and not (ROOT / "foveate").exists()


@pytest.mark.parametrize("folder", RUN_BY_PATH)
def test_no_script_folder_shadows_a_library(folder):
    """``python export/build.py`` puts export/ first on sys.path, so an export/json.py would shadow json."""
    names = {p.stem if p.suffix else p.name for p in (ROOT / folder).glob("*") if p.suffix in (".py", "")}
    extras = PROJECT["project"]["optional-dependencies"]
    requirements = [*PROJECT["project"]["dependencies"], *(r for extra in extras.values() for r in extra)]
    libraries = {"PIL", "sklearn", "tensorrt", "tensorrt_rtx", "jinja2", "foveate"}
    libraries |= {"".join(c if c.isalnum() else " " for c in r).split()[0] for r in requirements}
    libraries |= {r.split(";")[0].strip().split(">")[0].split("=")[0].replace("-", "_") for r in requirements}
    assert not {n for n in names if n != "__init__"} & (libraries | set(sys.stdlib_module_names))


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """(wheel, sdist) built from a copy, so that no build/ appears in the checkout."""
    folder = tmp_path_factory.mktemp("source")
    for name in TOP:
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md"):
        shutil.copy(ROOT / name, folder / name)
    script = (
        "import sys\nfrom setuptools import build_meta as b\n"
        "print(b.build_wheel('dist'))\nprint(b.build_sdist('dist'))\n"
    )
    done = run(sys.executable, "-c", script, cwd=folder)
    assert done.returncode == 0, done.stderr[-2000:]
    (wheel,), (sdist,) = (folder / "dist").glob("*.whl"), (folder / "dist").glob("*.tar.gz")
    return wheel, sdist


def modules_on_disk() -> set[str]:
    """Every module as the wheel names it."""
    found = [p for top in TOP for p in (ROOT / top).rglob("*.py") if p.parent != REGISTERED]
    return {f"foveate/{p.relative_to(ROOT).as_posix()}" for p in found} | {
        "optimum/commands/register/register_foveate.py"
    }


def test_the_wheel_holds_the_package_and_nothing_else(built):
    assert built[0].name == f"foveate-{PROJECT['project']['version']}-py3-none-any.whl"
    names = zipfile.ZipFile(built[0]).namelist()
    inside = {n for n in names if not n.split("/")[0].endswith(".dist-info")}
    assert {n for n in inside if n.endswith(".py")} == modules_on_disk()
    data = {f"foveate/{p.relative_to(ROOT).as_posix()}" for top in TOP for p in (ROOT / top).rglob("*.json")}
    assert {n for n in inside if n.endswith(".json")} == data and len(data) > 5
    assert {n.split("/")[0] for n in inside} == {"foveate", "optimum"}
    assert [n for n in inside if n.startswith("optimum/")] == [
        "optimum/commands/register/register_foveate.py"
    ]
    assert any(n.endswith("licenses/LICENSE") for n in names)
    assert not [n for n in inside if n.startswith(("foveate/tests", "foveate/scripts", "foveate/docs"))]
    assert "foveate/__init__.py" not in inside


def test_the_sdist_holds_what_the_wheel_needs(built):
    with tarfile.open(built[1]) as archive:
        names = {n.split("/", 1)[-1] for n in archive.getnames()}
    modules = {
        n.replace("optimum/commands/register/", "foveate/export/optimum_cli/") for n in modules_on_disk()
    }
    assert {n.removeprefix("foveate/") for n in modules} | {
        "pyproject.toml",
        "LICENSE",
        "README.md",
    } <= names


def test_the_wheel_works_where_there_is_no_checkout(built, tmp_path):
    """Unpacked and first on the path, as ``pip install --target`` leaves it."""
    zipfile.ZipFile(built[0]).extractall(tmp_path / "site")
    script = (
        "import importlib, pkgutil, foveate, foveate.runtime.cli as cli\n"
        "print(cli.__file__)\n"
        "assert cli.main(['--help']) == 0\n"
    )
    done = run(sys.executable, "-c", script, cwd=tmp_path, PYTHONPATH=str(tmp_path / "site"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(str(tmp_path / "site")) and "usage: foveate VERB" in done.stdout


def test_the_command():
    (command,) = entry_points(group="console_scripts", name="foveate")
    assert command.value == PROJECT["project"]["scripts"]["foveate"]
    script = Path(sys.executable).with_name("foveate")
    done = run(script, "--version", cwd=ROOT)
    assert (done.returncode, done.stdout.strip()) == (0, f"foveate {distribution('foveate').version}")
    assert distribution("foveate").metadata["License-Expression"] == "Apache-2.0"


def test_build_runs_by_path_from_anywhere(tmp_path):
    by_path = run(sys.executable, ROOT / "export/build.py", "--help", cwd=tmp_path)
    by_verb = run(Path(sys.executable).with_name("foveate"), "build", "--help", cwd=ROOT)
    assert by_path.returncode == by_verb.returncode == 0, by_path.stderr + by_verb.stderr
    assert "--method" in by_path.stdout and by_path.stdout == by_verb.stdout


def test_every_module_is_imported_once():
    """No file is loaded under two names, which would make two of every class in it."""
    for name in sorted(on_disk()):
        importlib.import_module(name)
    files: dict[str, str] = {}
    for name, module in sorted(sys.modules.items()):
        path = getattr(module, "__file__", None) or ""
        if path.startswith(tuple(f"{ROOT / top}{os.sep}" for top in TOP)):
            assert files.setdefault(path, name) == name, f"{path} is {files[path]} and {name}"
            assert name.startswith("foveate."), f"{path} was imported as {name}"
    assert len(files) >= len(on_disk())


def test_every_module_states_what_is_public():
    """``__all__`` in every module, and every name in it exists."""
    for top in TOP:
        for path in sorted((ROOT / top).rglob("*.py")):
            if path.name.startswith("__") or path.parent.name in ("trt", REGISTERED.name):
                continue
            name = ".".join(("foveate", *path.relative_to(ROOT).with_suffix("").parts))
            module = importlib.import_module(name)
            assert module.__doc__, f"{name} has no docstring"
            missing = [n for n in module.__all__ if not hasattr(module, n)]
            assert not missing, f"{name}.__all__ names {missing}"


def test_requirements_of_the_base_install_are_the_device_side():
    names = {r.split(">")[0].split(";")[0].strip() for r in PROJECT["project"]["dependencies"]}
    assert names == {"numpy", "pillow", "tokenizers", "onnxruntime"}
    assert PROJECT["project"]["requires-python"] == ">=3.10"

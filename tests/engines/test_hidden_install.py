"""A clone called foveate in the current folder: it takes the place of the installed one, and says so."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TOP = ("calib", "engines", "export", "jetson", "runtime")


def link(folder: Path) -> Path:
    """A foveate in ``folder``."""
    place = folder / "foveate"
    place.mkdir(parents=True)
    for name in TOP:
        (place / name).mkdir()
        for file in (ROOT / name).iterdir():
            if file.name != "__pycache__":
                (place / name / file.name).symlink_to(file) if file.is_dir() else (
                    place / name / file.name
                ).write_bytes(file.read_bytes())
    return place


def python(code: str, cwd: Path, *places: Path) -> str:
    """Return what a Python says that was started in ``cwd`` and has ``places`` for its site-packages."""
    start = f"import sys; sys.path[1:1] = {[str(p) for p in places]!r}; "
    done = subprocess.run(
        [sys.executable, "-c", start + code], cwd=cwd, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


@pytest.mark.parametrize("name", TOP)
def test_a_clone_that_hides_an_installed_one_says_so(tmp_path, name):
    clone, installed = link(tmp_path / "work"), link(tmp_path / "site-packages")
    code = f"import foveate.{name}; print(foveate.{name}.__file__)"
    said = python(code, tmp_path / "work", tmp_path / "site-packages")
    assert said.startswith(str(clone / name))
    assert said.count("RuntimeWarning") == 1
    assert f"taken from {clone}, which hides the one that is installed in {installed}" in said


def test_it_says_so_of_one_that_is_installed_for_editing(tmp_path):
    """An editable install is a finder of setuptools, not a folder."""
    clone = link(tmp_path / "work")
    said = python("import foveate.runtime", tmp_path / "work")
    assert f"taken from {clone}, which hides the one that is installed in {ROOT}" in said


def test_nothing_is_said_elsewhere(tmp_path):
    link(tmp_path / "site-packages")
    (tmp_path / "work").mkdir()
    assert python("import foveate.runtime", tmp_path / "work", tmp_path / "site-packages") == ""
    assert python("import foveate.runtime", tmp_path / "work") == ""
    assert python("import foveate.runtime", ROOT) == ""

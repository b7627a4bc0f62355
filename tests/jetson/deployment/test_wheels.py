"""Requirements of wheels, and the conditions in them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from wheels_by_hand import make_wheel

from foveate.engines.errors import UserError
from foveate.jetson.deployment import wheels
from foveate.jetson.deployment.wheels import Target, fingerprint, holds, requirements


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


def test_bindings_without_a_wheel_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python 3.14 has no wheel for CUDA 12.6; the device's own libcudart does the same."""
    asked = []

    def download(target: Target, folder: Path, wanted: list[str]) -> None:
        asked.append(wanted)
        if wanted[0].startswith("cuda"):
            raise UserError("cannot collect wheels | no matching distribution | check the network")

    monkeypatch.setattr(wheels, "_download", download)
    monkeypatch.setattr(wheels, "_own_wheel", lambda folder: make_wheel(folder, "foveate", {}))
    target = Target("aarch64", "3.14", "2.35", cuda="12.6")
    assert wheels.collect(target, tmp_path / "wheels") == ["cuda-python>=12,<12.7"]
    assert len(asked) == 2 and asked[1][0].startswith("pip")


def test_the_fingerprint_changes_with_the_sources_the_target_and_the_requirements(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "jetson" / "deployment"
    package.mkdir(parents=True)
    (tmp_path / "pyproject.toml").touch()
    (tmp_path / "jetson" / "__init__.py").touch()
    shutil.copy(wheels.__file__, package / "wheels.py")
    monkeypatch.setattr(wheels, "__file__", str(package / "wheels.py"))
    target = Target("aarch64", "3.10", "2.35", "12.6")
    found = [fingerprint(target, [])]
    assert fingerprint(Target("aarch64", "3.10", "2.35", "12.6"), []) == found[0]
    found += [fingerprint(target, ["opencv"]), fingerprint(Target("aarch64", "3.10", "2.35"), [])]
    (tmp_path / "jetson" / "__init__.py").write_text("new = 1")
    found.append(fingerprint(target, []))
    assert len(set(found)) == 4
    (tmp_path / "jetson" / "__pycache__").mkdir()
    (tmp_path / "jetson" / "__pycache__" / "x.pyc").touch()
    assert fingerprint(target, []) == found[-1]

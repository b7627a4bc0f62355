"""``make release``: what is written beside the wheel. The target itself installs it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from maintenance import release


def test_constraints_pin_every_package_but_foveate() -> None:
    lines = release.constraints({"torch": "2.13.0+cpu", "Pillow": "13.0.0", "foveate": "0.2.0", "pip": "26"})
    assert lines.splitlines()[1:] == ["Pillow==13.0.0", "torch==2.13.0"]


def test_the_sums_are_those_of_sha256sum(tmp_path: Path) -> None:
    for name in ("b.whl", "a.txt"):
        (tmp_path / name).write_text(name)
    sums = release.sums(list(tmp_path.iterdir()))
    (tmp_path / "SHA256SUMS").write_text(sums)
    assert [line.split("  ")[1] for line in sums.splitlines()] == ["a.txt", "b.whl"]
    subprocess.run(["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=tmp_path, check=True)
    (tmp_path / "a.txt").write_text("changed")
    done = subprocess.run(["sha256sum", "--check", "SHA256SUMS"], cwd=tmp_path, check=False)
    assert done.returncode == 1


def test_a_wrong_answer_ends_the_release() -> None:
    command = "from maintenance.release import expect; expect('U', 'T')"
    scripts = Path(release.__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", command], cwd=scripts, check=False, capture_output=True, text=True
    )
    assert done.returncode == 1 and "got 'U', expected 'T'" in done.stderr

"""The installer refuses an empty root, and a bundle that a compilation writes into."""

from __future__ import annotations

from pathlib import Path

import pytest

from foveate.engines.disk import locks
from foveate.jetson.deployment import installer


def test_an_empty_root_is_not_the_current_folder(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        installer.main(["--to", ""])
    assert "--to: the value is empty" in capsys.readouterr().err


def test_a_bundle_that_a_compilation_writes_into_is_not_replaced(tmp_path: Path) -> None:
    with (
        locks.held(locks.inside(tmp_path), "foveate compile", refused="", remedy=""),
        pytest.raises(ValueError, match="in use: a compilation writes into it"),
        installer._unused(tmp_path),
    ):
        pytest.fail("it was replaced")
    with installer._unused(tmp_path):
        pass

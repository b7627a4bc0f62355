"""Fixtures of tests that put bundles: two small ones."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from foveate.export import methods
from foveate.export.build_bundle import build
from foveate.export.models import llava


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle, not compiled. Do not change it."""
    root = tmp_path_factory.mktemp("source") / "b"
    build(llava.tiny(), methods.load("none"), root, precision="fp32", dialects=["ort"])
    return root


@pytest.fixture
def other(source: Path, tmp_path: Path) -> Path:
    """Another bundle: its graphs are the same, its name is not."""
    root = shutil.copytree(source, tmp_path / "other")
    data = json.loads((root / "bundle.json").read_text())
    (root / "bundle.json").write_text(json.dumps(data | {"name": "other"}))
    return root

"""A small bundle of random weights, for scripts that ask one."""

from __future__ import annotations

import pytest

from foveate.export import methods, models
from foveate.export.build import build
from foveate.runtime.compiling.compile import compile_bundle


@pytest.fixture(scope="session")
def uniform_bundle(tmp_path_factory, save_checkpoint):
    """Method uniform on 16 visual tokens, in float32, compiled for ONNX Runtime."""
    root = tmp_path_factory.mktemp("uniform")
    save_checkpoint(root / "tiny")
    parts = models.load(str(root / "tiny"))
    build(parts, methods.load("uniform"), root / "bundle", precision="fp32", dialects=["ort"])
    compile_bundle(root / "bundle")
    return root / "bundle"

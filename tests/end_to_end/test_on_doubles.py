"""All of our own code between a bundle and the first word on a GPU, on doubles of CUDA and of TensorRT.

The commands are those of a user. The doubles stand in for the two libraries in every process, the builder's
too, and fail where our code breaks a rule of theirs. What they cannot show is what a GPU computes.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

HELPERS = Path(__file__).parents[1] / "helpers"
SCENE = Path(__file__).parents[2] / "docs/scene.png"


def foveate(*words: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command on a machine with the doubles."""
    path = os.pathsep.join(map(str, (HELPERS / "gpu_machine", HELPERS)))
    command = [sys.executable, "-m", "foveate.runtime.cli", *map(str, words)]
    everything = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **environment}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=everything)
    assert done.returncode == 0, done.stderr
    return done


def answer(root: Path, **environment: str) -> list[int]:
    question = (root, "What is in the image?", "--image", SCENE, "--engine", "tensorrt")
    done = foveate("run", *question, "--json", "--max-new-tokens", 8, **environment)
    return json.loads(done.stdout)["tokens"]


def record(root: Path) -> dict[str, Any]:
    (file,) = (root / "engines").glob("tensorrt-*/engine.json")
    return json.loads(file.read_text())


@pytest.fixture
def root(method_bundle: Callable[..., Path], tmp_path: Path) -> Path:
    """Two segments with a pruner between them, not compiled."""
    return shutil.copytree(
        method_bundle("fastv"), tmp_path / "bundle", ignore=shutil.ignore_patterns("engines")
    )


@pytest.mark.parametrize(("version", "dialect"), [("10.16.1.11", "native"), ("10.3.0", "primitive")])
def test_from_the_file_to_the_first_word(root: Path, version: str, dialect: str) -> None:
    there = {"DOUBLE_VERSION": version}
    foveate("compile", root, "--target", "tensorrt", **there)
    made = record(root)
    assert made["dialect"] == dialect and made["self_test"]["ok"] and not any(made["workarounds"].values())
    assert made["machine"]["device"] == "Double, 4 GiB"
    plain = answer(root, **there)
    assert len(plain) == 8
    foveate("compile", root, "--target", "tensorrt", "--cuda-graphs", "--device-sampling", **there)
    assert record(root)["self_test"]["ok"] and answer(root, **there) == plain


def test_a_dialect_that_the_builder_refuses_is_followed_by_the_next(root: Path) -> None:
    there = {"DOUBLE_REFUSES": "^TensorScatter$"}
    done = foveate("compile", root, "--target", "tensorrt", **there)
    assert "llm.0 is refused" in done.stdout + done.stderr
    made = record(root)
    assert made["dialect"] == "primitive" and made["self_test"]["ok"]
    assert made["workarounds"]["llm.1"] == ["operators spelt out"]
    assert len(answer(root, **there)) == 8

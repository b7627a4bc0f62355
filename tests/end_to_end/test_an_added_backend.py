"""A backend is added by one folder: docs/adding-a-backend.md."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from foveate.engines.targets import TARGETS

BACKENDS = Path(__file__).parents[1] / "helpers/backends"
START = f"""
import sys, foveate.engines
foveate.engines.__path__.append({str(BACKENDS)!r})
from foveate.runtime import cli
sys.exit(cli.main(sys.argv[1:]))
"""


def foveate(*words: object) -> subprocess.CompletedProcess[str]:
    """Run the command line of a foveate that has the folder among its engines."""
    command = [sys.executable, "-c", START, *map(str, words)]
    environment = {**os.environ, "COLUMNS": "400"}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


@pytest.fixture(scope="module")
def added(make_bundle: Callable[..., Path]) -> Path:
    """A bundle that was compiled for the added target, and for no other."""
    root = make_bundle()
    done = foveate("compile", root, "--target", "onnx-reference", "--verbosity", 0)
    assert done.returncode == 0, done.stderr
    assert "onnx-reference-" in done.stdout
    return root


@pytest.fixture
def picked(tmp_path: Path) -> Path:
    file = tmp_path / "image.png"
    Image.fromarray(np.random.default_rng(5).integers(0, 256, (8, 8, 3), np.uint8)).save(file)
    return file


def test_it_was_not_there_before(added: Path) -> None:
    assert "onnx-reference" not in TARGETS
    done = subprocess.run(
        [sys.executable, "-m", "foveate.runtime.cli", "compile", added, "--target", "onnx-reference"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2 and "unknown target 'onnx-reference'" in done.stderr


def test_the_self_test_of_the_compilation_passed(added: Path) -> None:
    (record,) = (added / "engines").glob("*/engine.json")
    data = json.loads(record.read_text())
    assert data["target"] == "onnx-reference" and data["options"] == {"verbosity": 0}
    assert data["self_test"]["ok"] and len(data["self_test"]["findings"]) == 13


def test_check_passes(added: Path) -> None:
    done = foveate("check", added)
    assert done.returncode == 0 and done.stdout.splitlines()[-1].startswith("fine: "), done.stderr


def test_it_answers_as_onnx_runtime_does(added: Path, bundle: Path, picked: Path) -> None:
    """Both bundles hold the same graphs."""
    question = ("What?", "--image", picked, "--keep", "5", "--max-new-tokens", "8", "--json")
    mine, theirs = (json.loads(foveate("run", root, *question).stdout) for root in (added, bundle))
    assert mine["tokens"] == theirs["tokens"] and len(mine["tokens"]) > 1
    assert mine["kept"] == theirs["kept"]


def test_inspect_shows_it(added: Path) -> None:
    done = foveate("inspect", added)
    assert done.returncode == 0, done.stderr
    assert "onnx-reference-" in done.stdout and "verbosity 0" in done.stdout


def test_its_options_are_options_of_compile(added: Path) -> None:
    shown = foveate("compile", "--help").stdout
    assert "ONNX's reference evaluator:" in shown and "--verbosity VERBOSITY" in shown
    assert "tensorrt, tensorrt-rtx, onnxruntime, onnx-reference (default: onnxruntime)." in shown
    for words, said in {
        ("onnx-reference", "--verbosity", "11"): "wrong verbosity | got 11, expected 0 to 10",
        ("onnx-reference", "--provider", "cpu"): "--provider is not an option of onnx-reference",
        ("onnxruntime", "--verbosity", "1"): "--verbosity is not an option of onnxruntime",
    }.items():
        done = foveate("compile", added, "--target", *words)
        assert done.returncode == 2 and said in done.stderr

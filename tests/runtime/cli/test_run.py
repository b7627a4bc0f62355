"""The verb run: text, JSON, times and overlays."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from command_line import main
from PIL import Image


def test_run_streams_text(bundle: Path, image: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from foveate.runtime.pipeline import Pipeline

    assert main("run", bundle, "Why?", "--image", image, "--max-new-tokens", 9) == 0
    printed = capsys.readouterr()
    expected = Pipeline.load(bundle).generate(image, "Why?", max_new_tokens=9)
    assert printed.out == expected.text + "\n"
    assert printed.err == ""


def test_run_json(bundle: Path, image: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = main(
        *("run", bundle, "Why?", "--image", image, "--image", image, "--keep", "25%", "--json"),
        *(
            "--max-new-tokens",
            9,
            "--temperature",
            1,
            "--top-k",
            5,
            "--top-p",
            0.9,
            "--seed",
            3,
            "--threads",
            1,
        ),
    )
    assert code == 0
    document = json.loads(capsys.readouterr().out)
    assert len(document["tokens"]) == 9
    assert [len(kept) for kept in document["kept"]] == [4, 4]
    assert document["timings"]["cache_bytes_allocated"] > document["timings"]["cache_bytes_used"] > 0
    assert document["finish"] == "length"


def test_run_timings(bundle: Path, image: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main("run", bundle, "Why?", "--image", image, "--timings", "--max-new-tokens", 3) == 0
    lines = capsys.readouterr().err.splitlines()
    names = [
        "kept",
        "preprocess",
        "vision",
        "prune",
        "prefill",
        "decode",
        "first",
        "total",
        "decoding",
        "prompt",
        "cache",
    ]
    assert [line.split()[0] for line in lines] == names
    assert re.fullmatch(r"kept +\d+ of 16 visual tokens \(\d+\.\d%\)", lines[0])


def test_run_overlay(bundle: Path, image: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.png"
    code = main(
        "run", bundle, "Why?", "--image", image, "--image", image, "--overlay", out, "--max-new-tokens", 1
    )
    assert code == 0
    for path in (out, tmp_path / "out-2.png"):
        with Image.open(path) as drawn:
            assert drawn.size[0] == drawn.size[1] >= 8
    printed = capsys.readouterr().err
    assert printed == f"overlay: {out}\noverlay: {tmp_path / 'out-2.png'}\n"

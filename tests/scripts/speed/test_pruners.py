"""``scripts/bench_pruners.py`` at full width, with the cheapest method and one in-LLM method."""

from __future__ import annotations

import json

import pytest

from speed import pruners


@pytest.mark.slow
def test_methods_before_and_inside_the_language_model(monkeypatch, capsys, tmp_path):
    command = [
        "bench_pruners.py",
        "--methods",
        "uniform",
        "fastv",
        "tome",
        "--tokens",
        "576",
        "--rounds",
        "2",
    ]
    monkeypatch.setattr("sys.argv", [*command, "--work", str(tmp_path)])
    pruners.main()
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    middle, fastest, slowest = found["seconds"]["fastv 576"]
    assert set(found["seconds"]) == {"fastv 576", "uniform 576"}
    assert 0 < found["seconds"]["uniform 576"][1] < fastest <= middle <= slowest

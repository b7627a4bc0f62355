"""The verb inspect: texts and JSON."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command_line import main


def test_inspect(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main("inspect", bundle) == 0
    text = capsys.readouterr().out
    for words in (
        "tap (no options), positions compact",
        "16 visual tokens, 4 x 4",
        "keep int64[]",
        "past.0.key dtype[1, 2, cache, 8] ... past.1.value: 4 alike",
        "vision_encoder.ort.onnx, float32",
        "weights/llm.data",
        "fits this machine",
    ):
        assert words in text, words
    assert main("inspect", bundle, "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert [stage["name"] for stage in facts["stages"]] == ["vision_encoder", "pruner", "llm"]
    assert facts["engines"][0]["fault"] is None
    assert facts["bytes"] == sum(facts["files"].values())


def test_inspect_without_engines(make_bundle, capsys: pytest.CaptureFixture[str]) -> None:
    assert main("inspect", make_bundle(keep=7)) == 0
    text = capsys.readouterr().out
    assert "engine      none" in text
    assert "keep=7" in text

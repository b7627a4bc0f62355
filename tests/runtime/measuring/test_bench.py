"""``foveate bench`` prints a table, then one JSON document.

What cannot be measured is refused before anything runs.
"""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from foveate.runtime.cli import main
from foveate.runtime.measuring.bench import STAGES, measure


def test_the_last_line_is_one_document(bundle, capsys):
    assert main(["bench", str(bundle), "--keep", "16", "4", "--rounds", "3", "--threads", "1"]) == 0
    *table, last = capsys.readouterr().out.splitlines()
    found = json.loads(last)
    assert [row["keep"] for row in found["rows"]] == [16, 4]
    assert sum(line.startswith(("| 16 |", "| 4 |")) for line in table) == 2
    whole, pruned = found["rows"]
    assert whole["prompt_rows"] - pruned["prompt_rows"] == 12
    assert whole["cache_bytes"] > pruned["cache_bytes"] and whole["flops"] > pruned["flops"]
    for row in found["rows"]:
        for stage in STAGES:
            middle, fastest, slowest = row[stage]
            assert 0 <= fastest <= middle <= slowest
        assert row["first_token"][0] >= row["prefill"][0] > 0
    assert whole["prefill_ratio"] == whole["first_token_ratio"] == 1
    assert found["environment"]["threads"] == 1 and found["environment"]["machine"]
    assert found["bundle_bytes"] > 0 and found["engine_bytes"] > 0


def test_json_is_one_document_and_nothing_else(bundle, capsys):
    assert main(["bench", str(bundle), "--keep", "4", "--rounds", "1", "--new-tokens", "1", "--json"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert [row["keep"] for row in json.loads(line)["rows"]] == [4]


def test_the_prompt_has_the_text_that_was_asked_for(bundle):
    few, many = (measure(bundle, ["4"], text_tokens=tokens, rounds=1) for tokens in (20, 50))
    assert (few["text_tokens"], many["text_tokens"]) == (20, 50)
    assert many["rows"][0]["prompt_rows"] - few["rows"][0]["prompt_rows"] == 30


def test_a_bundle_that_leaves_no_choice_has_one_row(plain_bundle):
    found = measure(plain_bundle, rounds=1, new_tokens=1)
    assert [row["keep"] for row in found["rows"]] == [16]


def test_memory_is_told_apart():
    """New pages, because a heap may hold free ones, in a process where nothing else allocates memory."""
    lines = (
        "import mmap",
        "from foveate.runtime.measuring.bench import resident_bytes",
        "before = resident_bytes()['anonymous']",
        "with mmap.mmap(-1, 64 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as block:",
        "    block.write(bytes([1]) * len(block))",
        "    print(resident_bytes()['anonymous'] - before)",
    )
    out = subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, check=True)
    assert int(out.stdout) > 60 << 20


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--rounds", "0"], "wrong rounds"),
        (["--image-size", "0", "480"], "wrong image size"),
        (["--image-size", "1000000", "1000000"], "wrong image size"),
        (["--text-tokens", "100000000"], "wrong text-tokens"),
        (["--new-tokens", "-1"], "wrong new-tokens"),
        (["--keep", "99"], "wrong keep"),
    ],
)
def test_runs_that_cannot_be_measured_are_refused(bundle, capsys, arguments, words):
    assert main(["bench", str(bundle), *arguments]) == 2
    assert words in capsys.readouterr().err

"""The count of hops: calls into another file, through files that do not count."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

from maintenance.hops import Counter


def test_a_call_into_another_file_is_a_hop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, text in {
        "hop_a": "import hop_b, other_c\n"
        "def start(): hop_b.leaf(); hop_b.leaf(); other_c.through(); own()\n"
        "def own(): pass\n",
        "hop_b": "def leaf(): pass\n",
        "other_c": "import hop_b\ndef through(): hop_b.leaf()\n",
    }.items():
        (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    start = importlib.import_module("hop_a").start
    counter = Counter((str(tmp_path / "hop_"),))
    sys.setprofile(counter)
    try:
        start()
    finally:
        sys.setprofile(None)
    assert counter.calls == 5 and counter.hops == 3  # start, own and three times leaf
    assert {Path(name).name for name in counter.files} == {"hop_a.py", "hop_b.py"}

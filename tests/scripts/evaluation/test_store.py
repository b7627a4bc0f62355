"""Logs of answers, and the version of the code that gave them."""

from __future__ import annotations

import json

from evaluation import store
from evaluation.store import Log


def test_a_log_drops_what_a_crash_cut_short_and_goes_on(tmp_path):
    file = tmp_path / "deep" / "log.jsonl"
    Log(file, ("a", "b")).add([{"a": 1, "b": 2, "c": "x"}, {"a": 1, "b": 3, "c": "y"}])
    with file.open("a") as handle:
        handle.write('{"a": 1, "b": 4, "c": "cut sh')
    log = Log(file, ("a", "b"))
    assert len(log) == 2 and log.get(1, 3)["c"] == "y" and log.get(1, 4) is None
    log.add([{"a": 1, "b": 4, "c": "z"}])
    assert [json.loads(line)["c"] for line in file.read_text().splitlines()] == ["x", "y", "z"]


def test_code_is_the_same_without_its_comments_and_another_when_something_it_imports_changes(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(store, "ROOT", tmp_path)
    (tmp_path / "runtime").mkdir()
    top, below = tmp_path / "runtime/top.py", tmp_path / "runtime/below.py"

    def version(first: str, second: str) -> str:
        top.write_text(first)
        below.write_text(second)
        return store.code_version("foveate.runtime.top")

    plain = version("from foveate.runtime import below\nx = below.y\n", "y = 1\n")
    assert (
        version('"""Text."""\nfrom foveate.runtime import below  # why\n\nx = below.y\n', "y = 1  # one\n")
        == plain
    )
    assert version("from foveate.runtime import below\nx = below.y\n", "y = 2\n") != plain
    assert version("from foveate.runtime import below\nx = below.y + 1\n", "y = 1\n") != plain

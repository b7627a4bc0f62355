from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from foveate.engines.errors import UserError
from foveate.runtime.bundle import stamps
from foveate.runtime.bundle.loading import load, write_manifest


@pytest.fixture
def copy(bundle: Path, tmp_path: Path) -> Path:
    """A bundle of one's own, with a large file (2 MiB) and without engines."""
    root = shutil.copytree(bundle, tmp_path / "copy", ignore=shutil.ignore_patterns("engines"))
    (root / "weights" / "large.data").write_bytes(os.urandom(2 << 20))
    write_manifest(root, json.loads((root / "bundle.json").read_text()))
    return root


def edit(root: Path, change: Any) -> None:
    data = json.loads((root / "bundle.json").read_text())
    change(data)
    (root / "bundle.json").write_text(json.dumps(data))


def test_manifest_is_read_as_written(copy: Path) -> None:
    data = json.loads((copy / "bundle.json").read_text())
    manifest = load(copy).manifest
    assert json.loads(json.dumps(manifest.to_json())) == data
    assert data["format"] == 2
    assert set(data["files"]) == {
        "embed_tokens.npy",
        "golden.npz",
        "llm.ort.onnx",
        "pruner.ort.onnx",
        "tokenizer.json",
        "vision_encoder.ort.onnx",
        "weights/large.data",
        "weights/llm.data",
        "weights/vision_encoder.data",
    }
    assert manifest.spec("llm", "ort").input("inputs_embeds").dtype == "float32"


def test_unknown_fields_are_passed_over(copy: Path) -> None:
    edit(copy, lambda data: data.update(note="from a later minor version"))
    load(copy)


def test_missing_file(copy: Path) -> None:
    (copy / "weights" / "llm.data").unlink()
    with pytest.raises(UserError, match=r"incomplete \| weights/llm.data is missing"):
        load(copy)


@pytest.mark.parametrize("name", ["weights/large.data", "llm.ort.onnx", "tokenizer.json"])
def test_a_changed_byte_is_found(copy: Path, name: str) -> None:
    load(copy)
    data = bytearray((copy / name).read_bytes())
    data[len(data) // 2] ^= 1
    (copy / name).write_bytes(data)
    with pytest.raises(UserError, match=rf"{name} has changed \| its SHA-256"):
        load(copy)


def test_the_message_shows_where_two_hashes_differ(copy: Path) -> None:
    """Not their beginnings, where these are the same."""
    names = json.loads((copy / "bundle.json").read_text())["files"]
    true = names["tokenizer.json"]["sha256"]
    wrong = true[:30] + "0" * 34
    edit(copy, lambda data: data["files"]["tokenizer.json"].update(sha256=wrong))
    with pytest.raises(
        UserError, match=rf"from digit 25 on is {true[24:36]}, expected {wrong[24:36]} \| copy or"
    ):
        load(copy)


def test_a_cut_file_is_found(copy: Path) -> None:
    with (copy / "weights" / "large.data").open("r+b") as file:
        file.truncate(1000)
    with pytest.raises(UserError, match=r"large.data has changed \| got 1000 bytes"):
        load(copy)


def test_newer_format(copy: Path) -> None:
    edit(copy, lambda data: data.update(format=3, stages=None))
    with pytest.raises(UserError, match=r"newer foveate \| its format is 3, this foveate reads 2"):
        load(copy)


def test_older_format(copy: Path) -> None:
    edit(copy, lambda data: data.update(format=1, stages=None))
    with pytest.raises(
        UserError, match=r"older foveate \| .* build it again: foveate build --model \S+ --method \S+"
    ):
        load(copy)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"format": 2}', '{"format": "x"}'])
def test_damaged_manifest(copy: Path, text: str) -> None:
    (copy / "bundle.json").write_text(text)
    with pytest.raises(UserError, match=r"bundle.json is damaged"):
        load(copy)


def test_no_bundle(tmp_path: Path) -> None:
    for path, words in ((tmp_path, "no bundle.json"), (tmp_path / "nowhere", "no such directory")):
        with pytest.raises(UserError, match=words) as error:
            load(path)
        assert error.value.code == 2


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "weights/../../x", "..\\outside"])
def test_files_outside_are_refused(copy: Path, name: str) -> None:
    edit(copy, lambda data: data["files"].update({name: {"size": 1, "sha256": ""}}))
    with pytest.raises(UserError, match="outside the bundle"):
        load(copy)


def test_large_files_are_hashed_once(copy: Path) -> None:
    hashed: list[str] = []
    load(copy, progress=hashed.append)
    load(copy, progress=hashed.append)
    assert hashed == ["weights/large.data"]
    load(copy, full=True, progress=hashed.append)
    assert hashed == ["weights/large.data"] * 2
    large = copy / "weights" / "large.data"
    os.utime(large, ns=(1, 1))
    load(copy, progress=hashed.append)
    assert hashed == ["weights/large.data"] * 3


def test_a_copied_bundle_is_hashed_again(copy: Path, tmp_path: Path) -> None:
    load(copy)
    hashed: list[str] = []
    load(shutil.copytree(copy, tmp_path / "again"), progress=hashed.append)
    assert hashed == ["weights/large.data"]


def test_full_check_sees_what_the_stamp_hides(copy: Path) -> None:
    load(copy)
    large = copy / "weights" / "large.data"
    before = large.stat()
    with large.open("r+b") as file:
        file.write(b"\0\0\0\0")
    os.utime(large, ns=(before.st_atime_ns, before.st_mtime_ns))
    load(copy)
    with pytest.raises(UserError, match=r"large\.data has changed"):
        load(copy, full=True)


def test_damaged_stamps_are_no_stamps(copy: Path) -> None:
    load(copy)
    for text in ("{", "[1]", "\xff"):
        (copy / "engines" / ".checked.json").write_text(text)
        hashed: list[str] = []
        load(copy, progress=hashed.append)
        assert hashed == ["weights/large.data"]


def test_read_only_bundle(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise PermissionError(30, "Read-only file system")

    monkeypatch.setattr(stamps.files, "atomic_file", refuse)
    hashed: list[str] = []
    load(copy, progress=hashed.append)
    load(copy, progress=hashed.append)
    assert hashed == ["weights/large.data"] * 2

"""Compiled engines: found, refused with the reason, replaced whole."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from foveate.engines.disk.files import sha256
from foveate.engines.errors import UserError
from foveate.engines.ort.backend import OnnxRuntime
from foveate.runtime import cli
from foveate.runtime.bundle import stamps
from foveate.runtime.bundle.compiled import choose, compiled_engines
from foveate.runtime.bundle.loading import load
from foveate.runtime.cli.compile import main
from foveate.runtime.compiling.compile import compile_bundle
from foveate.runtime.pipeline import Pipeline


@pytest.fixture
def copy(bundle: Path, tmp_path: Path) -> Path:
    return shutil.copytree(bundle, tmp_path / "copy")


def record(root: Path) -> Path:
    (file,) = (root / "engines").glob("*/engine.json")
    return file


def edit(root: Path, change: Any) -> None:
    data = json.loads(record(root).read_text())
    change(data)
    record(root).write_text(json.dumps(data))


def test_record(copy: Path) -> None:
    data = json.loads(record(copy).read_text())
    assert data["machine"] == OnnxRuntime().machine({})
    assert record(copy).parent.name == OnnxRuntime().key(OnnxRuntime().machine({}))
    assert data["options"] == {"provider": "cpu", "accuracy_level": 4}
    assert {"llm.ort.onnx", "weights/llm.data"} <= data["sources"].keys()
    assert {"llm.onnx", "pruner.onnx", "vision_encoder.onnx"} <= data["files"].keys()
    assert choose(load(copy)).fault(load(copy), full=True) is None


def test_nothing_compiled(make_bundle) -> None:
    root = make_bundle()
    with pytest.raises(UserError, match=r"no compiled engine \| nothing is compiled \| foveate compile "):
        Pipeline.load(root)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda d: d["machine"].update(version="1.2.3"), "made for version 1.2.3, this machine has"),
        (
            lambda d: d["machine"]["cpu"].insert(0, "amx_int8x"),
            "made for cpu amx_int8x, this machine has less",
        ),
        (lambda d: d["machine"]["cpu"].pop(), "made for cpu less, this machine has"),
        (lambda d: d["sources"].update({"llm.ort.onnx": "0"}), "other files than the bundle holds"),
        (lambda d: d["files"]["llm.onnx"].update(size=3), "llm.onnx has changed"),
        (lambda d: d["files"].update({"gone": {"size": 3, "sha256": ""}}), "gone is missing"),
        (lambda d: d.update(target="abacus"), "no target abacus"),
    ],
)
def test_misfits_are_refused_with_reason_and_command(copy: Path, change: Any, reason: str) -> None:
    edit(copy, change)
    with pytest.raises(UserError) as error:
        Pipeline.load(copy)
    assert reason in str(error.value)
    assert f"foveate compile {copy} --target" in str(error.value)
    assert "--accuracy-level 4" in str(error.value)


def flip(file: Path, at: int = 100) -> None:
    with file.open("r+b") as opened:
        opened.seek(at)
        byte = opened.read(1)[0]
        opened.seek(at)
        opened.write(bytes([byte ^ 1]))


@pytest.mark.parametrize("name", ["llm.data", "llm.onnx", "pruner.onnx", "vision_encoder.onnx"])
def test_a_changed_byte_of_an_engine_is_refused_with_the_command(copy: Path, name: str) -> None:
    Pipeline.load(copy)
    flip(record(copy).with_name(name))
    with pytest.raises(
        UserError, match=rf"{name} has changed since it was compiled: its SHA-256 .* expected"
    ) as error:
        Pipeline.load(copy)
    assert f"| foveate compile {copy} --target onnxruntime" in str(error.value)
    compile_bundle(copy)
    Pipeline.load(copy)


@pytest.fixture
def large(copy: Path) -> Path:
    """A file of 2 MiB among those of the engine."""
    file = record(copy).with_name("large.data")
    file.write_bytes(os.urandom(2 << 20))
    entry = {"size": 2 << 20, "sha256": sha256(file)}
    edit(copy, lambda data: data["files"].update({file.name: entry}))
    return file


def test_large_files_of_an_engine_are_hashed_once(copy: Path, large: Path) -> None:
    """One that keeps its stamp although it changed is found by the full check."""
    hashed: list[str] = []
    for _ in range(2):
        choose(load(copy), progress=hashed.append)
    assert hashed == [f"engines/{large.parent.name}/large.data"]
    before = large.stat()
    flip(large)
    os.utime(large, ns=(before.st_atime_ns, before.st_mtime_ns))
    plan = choose(load(copy))
    assert plan.fault(load(copy), full=True).startswith(
        "large.data has changed since it was compiled: its SHA-256"
    )
    assert cli.main(["check", str(copy)]) == 1
    os.utime(large)
    with pytest.raises(UserError, match=r"large\.data has changed"):
        choose(load(copy))


def test_a_fresh_engine_is_not_hashed_again(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stamps, "_SMALL", 0)
    compile_bundle(copy, force=True)
    hashed: list[str] = []
    choose(load(copy), progress=hashed.append)
    assert hashed == []


def test_a_damaged_record(copy: Path) -> None:
    record(copy).write_text("{")
    with pytest.raises(UserError, match=r"engine\.json is damaged"):
        Pipeline.load(copy)


@pytest.mark.parametrize(
    ("change", "key"),
    [
        (lambda d: d.update(machine=None), "machine is None"),
        (lambda d: d["machine"].update(cpu=[1]), r"machine\.cpu\[0\] is 1"),
        (lambda d: d.update(dialect=[]), r"dialect is \[\]"),
        (lambda d: d.update(options=[]), r"options is \[\]"),
        (lambda d: d["options"].update(provider={}), r"options\.provider is \{\}"),
        (lambda d: d["files"].update(x={"size": 1}), r"files\.x\.sha256 is missing"),
        (lambda d: d["files"]["llm.onnx"].update(sha256=1), r"files\.llm\.onnx\.sha256 is 1"),
    ],
)
def test_a_record_of_another_shape_names_the_key(copy: Path, change: Any, key: str) -> None:
    edit(copy, change)
    with pytest.raises(UserError, match=rf"engine\.json is damaged \| {key}"):
        choose(load(copy))


def test_a_deeply_nested_record_is_damaged(copy: Path) -> None:
    record(copy).write_text("[" * 100_000)
    with pytest.raises(UserError, match=r"engine\.json is damaged"):
        choose(load(copy))


def test_an_engine_in_a_dialect_that_the_bundle_lacks_is_refused(copy: Path) -> None:
    edit(copy, lambda d: d.update(dialect="gone"))
    with pytest.raises(UserError, match="compiled from other files than the bundle holds now"):
        choose(load(copy))


def test_a_provider_of_another_type_is_unknown(copy: Path) -> None:
    edit(copy, lambda d: d["options"].update(provider=["x"]))
    with pytest.raises(UserError, match="unknown provider"):
        choose(load(copy))


def test_engine_by_name(copy: Path) -> None:
    key = record(copy).parent.name
    for name in (None, "onnxruntime", key):
        assert choose(load(copy), name).key == key
    with pytest.raises(UserError, match=rf"no compiled engine tensorrt \| compiled are: {key}"):
        choose(load(copy), "tensorrt")


def test_the_one_that_fits_is_taken(copy: Path) -> None:
    folder = record(copy).parent
    other = shutil.copytree(folder, folder.with_name("onnxruntime-0.1"))
    data = json.loads((other / "engine.json").read_text())
    data["machine"]["version"] = "0.1"
    (other / "engine.json").write_text(json.dumps(data))
    assert [plan.key for plan in compiled_engines(load(copy))] == ["onnxruntime-0.1", folder.name]
    assert choose(load(copy)).key == folder.name


def test_compiling_again(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said: list[str] = []
    before = record(copy).stat().st_mtime_ns
    compile_bundle(copy, progress=said.append)
    assert said[-1].endswith("is up to date")
    assert record(copy).stat().st_mtime_ns == before
    compile_bundle(copy, force=True)
    assert record(copy).stat().st_mtime_ns != before
    edit(copy, lambda d: d["machine"].update(version="1.2.3"))
    assert main([str(copy), "--json"]) == 0
    printed = capsys.readouterr()
    document = json.loads(printed.out)
    assert document["engine"] == str(record(copy).parent)
    assert 20 << 20 < document["peak_bytes"] < 2 << 30
    assert "llm" in printed.err
    Pipeline.load(copy)


def test_a_failed_compilation_leaves_nothing(make_bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    root = make_bundle()

    def fail(self: OnnxRuntime, source: Path, folder: Path, *rest: object) -> None:
        (folder / "half").write_text("x")
        raise KeyboardInterrupt

    monkeypatch.setattr(OnnxRuntime, "compile_graph", fail)
    with pytest.raises(KeyboardInterrupt):
        compile_bundle(root)
    assert [p.name for p in (root / "engines").iterdir() if p.name != ".checked.json"] == []


def test_a_failed_compilation_keeps_the_old_engine(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object) -> None:
        raise UserError("no")

    monkeypatch.setattr(OnnxRuntime, "compile_graph", fail)
    with pytest.raises(UserError):
        compile_bundle(copy, force=True)
    Pipeline.load(copy)

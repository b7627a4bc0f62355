from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from foveate.engines.errors import UserError
from foveate.runtime.bundle import rebuild, stamps
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


OLDER = {
    "format": 1,
    "source": {"model": "some/model", "load_format": "auto", "adapter": "my adapter", "pruner": "p.pth"},
    "licence": {"clip": {"source": "some/clip"}},
    "method": {"name": "a+b", "options": {"a.layers": [1, 2], "a.rope": False, "b.keep": None, "outer": 1.5}},
    "precision": {"decoder": "int4", "head": "int8", "vision": "compute dtype", "prefill": "int8"},
    "stages": ["vision_encoder", "pruner", "llm.0", "llm.1", "pruner.0", "llm.2"],
    "cuts": [4],
    "dialects": {"ort": {}, "native": {}},
    "image": {"kind": "windows", "max_pixels": 1003520},
}


def test_an_older_format_is_refused_with_the_command_that_builds_it_again(copy: Path) -> None:
    (copy / "bundle.json").write_text(json.dumps(OLDER))
    with pytest.raises(UserError) as error:
        load(copy)
    what, got, remedy = str(error.value).split(" | ")
    assert what == f"{copy} was made by an older foveate"
    assert got == "its format is 1, this foveate reads 2"
    assert remedy == (
        "build it again: foveate build --model some/model --method a+b --set a.layers=1,2 --set a.rope=False "
        "--set outer=1.5 --adapter 'my adapter' --clip some/clip --pruner p.pth --precision int4 "
        "--head-precision int8 --prefill-precision int8 --dialects ort,native --max-pixels 1003520 "
        f"--llm-parts 3 --out {copy}"
    )


def test_settings_that_an_older_bundle_lacks_are_left_out(copy: Path) -> None:
    data = {"format": 1, "source": {"model": "m", "load_format": "dummy", "pruner": "dummy"}}
    assert rebuild.command(data, copy) is None
    data |= {"method": {"name": "none"}, "stages": ["vision_encoder", "llm"], "dialects": None, "image": []}
    statistics = copy.with_name("copy.statistics.safetensors")
    assert (
        rebuild.command(data, copy)
        == f"foveate build --model m --method none --load-format dummy --out {copy}"
    )
    statistics.touch()
    assert f"--statistics {statistics} --out" in str(rebuild.command(data, copy))
    (copy / "bundle.json").write_text('{"format": 1}')
    with pytest.raises(UserError, match="build it again with foveate build"):
        load(copy)


def test_a_feature_that_is_not_known_is_refused_by_name(copy: Path) -> None:
    edit(copy, lambda data: data.update(requires=["wide-rows", "batch"]))
    with pytest.raises(UserError, match=r"requires wide-rows, batch, which .* \| upgrade foveate"):
        load(copy)


WRONG = [
    (lambda d: d.pop("precision"), "precision is missing, expected an object"),
    (lambda d: d.update(requires="wide"), "requires is 'wide', expected a list"),
    (lambda d: d.update(methods=[]), "methods is [], expected a method"),
    (lambda d: d["methods"][0].pop("stages"), "methods[0].stages is missing, expected a list"),
    (
        lambda d: d["methods"][0].update(fixed_keep="8"),
        "methods[0].fixed_keep is '8', expected a whole number or null",
    ),
    (
        lambda d: d["methods"][0].update(position_mode="x"),
        "position_mode is 'x', expected 'compact' or 'keep'",
    ),
    (
        lambda d: d["methods"][0].update(budgets={"pruner": [[1]]}),
        "budgets.pruner[0] has 1 items, expected 2",
    ),
    (lambda d: d["precision"].update(head=None), "precision.head is None, expected a text"),
    (lambda d: d["decoder"].update(num_layers=2.0), "decoder.num_layers is 2.0, expected a whole number"),
    (lambda d: d["decoder"].update(num_layers=True), "decoder.num_layers is True, expected a whole number"),
    (lambda d: d.update(vision={"kind": "x"}), "vision.kind is 'x', expected 'clip' or 'merged'"),
    (lambda d: d.update(vision={"kind": "clip"}), "vision.hidden is missing, expected a whole number"),
    (lambda d: d["image"].update(kind=3), "image.kind is 3, expected 'clip' or 'anyres' or 'windows'"),
    (lambda d: d["image"].update(mean=[1, 2]), "image.mean has 2 items, expected 3"),
    (lambda d: d["prompt"].pop("stop_ids"), "prompt.stop_ids is missing, expected a list"),
    (lambda d: d["prompt"].update(roles=["user"]), "prompt.roles is ['user'], expected an object"),
    (
        lambda d: d.update(generation={"stop_strings": [1]}),
        "generation.stop_strings[0] is 1, expected a text",
    ),
    (lambda d: d.update(licence={"model": {"source": "a", "use": "x"}}), "licence.model.use is 'x'"),
    (lambda d: d["graphs"]["llm"].pop("outputs"), "graphs.llm.outputs is missing, expected a list"),
    (lambda d: d["graphs"]["llm"]["inputs"][0].update(shape=[1.5]), "graphs.llm.inputs[0].shape[0] is 1.5"),
    (lambda d: d["dialects"]["ort"].update(dtype="int8"), "dialects.ort.dtype is 'int8', expected"),
    (lambda d: d["files"]["tokenizer.json"].pop("size"), "files.tokenizer.json.size is missing"),
    (lambda d: d.update(ranges={"llm": [{"at": "x"}]}), "ranges.llm[0].layer is missing"),
]


@pytest.mark.parametrize(("change", "words"), WRONG, ids=[words for _, words in WRONG])
def test_a_wrong_type_or_a_missing_key_is_named(copy: Path, change: Any, words: str) -> None:
    edit(copy, change)
    with pytest.raises(UserError) as error:
        load(copy)
    what, got, remedy = str(error.value).split(" | ")
    assert what == f"{copy / 'bundle.json'} is damaged" and words in got
    assert remedy == "copy or build the bundle again"


@pytest.mark.parametrize("stage", ["gone", "llm"])
def test_a_stage_has_a_graph_and_a_file(copy: Path, stage: str) -> None:
    edit(copy, lambda data: data["methods"][0].update(stages=[stage]))
    edit(copy, lambda data: data["dialects"]["ort"]["files"].pop("llm"))
    with pytest.raises(UserError, match=rf"names a stage that has no graph \| got {stage}"):
        load(copy)


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", '{"format": 2}', '{"format": "x"}', pytest.param("[" * 100_000, id="deep")],
)
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

"""Publishing a bundle: mount points, full disks, engines that are kept, and file systems without links."""

from __future__ import annotations

import errno
import mmap
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from placing import in_mounts, names, put, write

from foveate.engines.disk import files
from foveate.engines.errors import UserError
from foveate.export import methods
from foveate.export.build_bundle import build
from foveate.export.bundling import publish, staging
from foveate.export.bundling.staging import reserved
from foveate.export.models import llava
from foveate.runtime.bundle.compiled import compiled_engines
from foveate.runtime.bundle.loading import UNFINISHED, Bundle, load
from foveate.runtime.compiling.compile import compile_bundle


def test_a_mount_point(source: Path, tmp_path: Path) -> None:
    """Twice, since the second finds the bundle of the first; the user's own files stay."""
    script = """
    mkdir out disk && mkdir disk/lost+found && mount --bind disk out
    put out
    echo mine > out/notes.txt
    put out
    """
    done = in_mounts(script, tmp_path, source)
    assert done.returncode == 0, done.stdout + done.stderr
    assert load(tmp_path / "disk", full=True)
    expected = {path.name for path in source.iterdir()} | {"lost+found", "notes.txt", ".lock", "engines"}
    assert {path.name for path in (tmp_path / "disk").iterdir()} - {"engines"} == expected - {"engines"}
    assert names(tmp_path) == {"out", "disk", "put.py"}


def test_a_mount_point_with_other_files_is_left_alone(source: Path, tmp_path: Path) -> None:
    script = "mkdir out disk && echo mine > disk/thesis.txt && mount --bind disk out && put out"
    done = in_mounts(script, tmp_path, source)
    assert done.returncode == 1
    assert "in the way | it is no bundle and holds thesis.txt" in done.stdout
    assert [path.name for path in (tmp_path / "disk").iterdir()] == ["thesis.txt"]


def test_a_full_disk_and_a_read_only_one(source: Path, tmp_path: Path) -> None:
    script = "mkdir out && mount -t tmpfs -o size={} none out && {} put out/b"
    full = in_mounts(script.format("100k", ""), tmp_path, source)
    assert full.returncode == 1 and "has 0 MiB left | free some space" in full.stdout
    assert "the disk is full |" in full.stdout
    (tmp_path / "out").rmdir()
    read_only = in_mounts(script.format("1m", "mount -o remount,ro out &&"), tmp_path, source)
    assert read_only.returncode == 1
    assert "cannot write to" in read_only.stdout and "Read-only file system" in read_only.stdout


@pytest.fixture
def inside(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pretend that a file system is mounted at every folder."""
    monkeypatch.setattr(staging, "_cannot_be_renamed", lambda folder: folder.is_dir())


def test_a_program_goes_on_with_the_files_that_were_replaced(
    source: Path, other: Path, tmp_path: Path
) -> None:
    """Tried where the folder is exchanged as a whole, and where its files are exchanged one by one."""
    for number, rename in enumerate((True, False)):
        out = tmp_path / f"b{number}"
        put(source, out)
        with (out / "embed_tokens.npy").open("rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        before = mapped[:]
        if rename:
            put(other, out)
        else:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(staging, "_cannot_be_renamed", lambda folder: folder.is_dir())
                put(other, out)
        assert load(out).manifest.name == "other"
        assert mapped[:] == before


def test_a_build_into_a_mount_point_that_is_cut_off_is_known_and_replaced(
    source: Path, other: Path, tmp_path: Path, inside: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``bundle.json`` comes last; at any moment before it the folder is no bundle."""
    out = tmp_path / "out"
    out.mkdir()
    put(source, out)
    rename, moved = Path.rename, []

    class PowerCut(BaseException):
        pass

    def cut(self: Path, target: Path) -> Path:
        if len(moved) == 3:
            raise PowerCut
        moved.append(target)
        return rename(self, target)

    with pytest.raises(PowerCut), pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "rename", cut)
        patch.setattr(shutil, "rmtree", lambda *args, **options: None)
        put(other, out)
    assert (out / UNFINISHED).is_file() and len(moved) == 3
    with pytest.raises(UserError, match="the build that wrote into it was cut off"):
        load(out)
    put(other, out)
    assert load(out, full=True).manifest.name == "other"
    assert names(out) - {"engines"} == {path.name for path in source.iterdir()} - {"engines"}


def test_files_are_replaced_if_a_folder_cannot_be_renamed(
    source: Path, other: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder of an image's lower layer: overlayfs answers EXDEV."""
    out = tmp_path / "out"
    put(source, out)

    def refuse(new: Path, place: Path) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(files, "put_folder", refuse)
    put(other, out)
    assert load(out, full=True).manifest.name == "other" and names(tmp_path) == {"out", "other"}


def test_engines_that_fit_are_kept_and_others_are_named(source: Path, other: Path, tmp_path: Path) -> None:
    for inside in (False, True):
        out = tmp_path / f"out{inside}"
        put(source, out)
        compile_bundle(out)
        with pytest.MonkeyPatch.context() as patch:
            if inside:
                patch.setattr(staging, "_cannot_be_renamed", lambda folder: folder.is_dir())
            (plan,) = compiled_engines(load(out))
            (line,) = put(other, out)
            assert line.startswith(f"the compiled engine {plan.key} is kept")
            (kept,) = compiled_engines(load(out))
            assert kept.fault(load(out), full=True) is None and load(out).manifest.name == "other"
            different = tmp_path / f"different{inside}"
            build(llava.tiny(layers=3), methods.load("none"), different, precision="fp32", dialects=["ort"])
            (line,) = put(different, out)
            assert f"{plan.key} of the older bundle is gone" in line
            assert f"foveate compile {out} --target onnxruntime" in line
            assert not list(compiled_engines(load(out)))


def test_engines_are_copied_on_disks_without_links(
    source: Path, other: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    put(source, out)
    compile_bundle(out)

    def refuse(source: object, target: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    put(other, out)
    (kept,) = compiled_engines(load(out))
    assert kept.fault(load(out), full=True) is None


def test_a_bundle_that_cannot_be_put_is_kept_beside(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody put a file there while it was built."""
    out = tmp_path / "out"
    with (
        pytest.raises(UserError, match=r"it is a file.* \| it is whole in .*out\.new1: move it by hand"),
        reserved(out) as place,
    ):
        write(load(source), place.root)
        out.write_text("mine")
        publish.publish(place, Bundle(place.root, load(source).manifest), print)
    assert out.read_text() == "mine" and load(tmp_path / "out.new1", full=True)


@pytest.fixture(params=["vfat", "exfat"])
def stick(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A file system without links, on a disk in a file."""
    image, point = tmp_path / "image", tmp_path / "stick"
    point.mkdir()
    with image.open("wb") as file:
        file.truncate(64 << 20)
    mount = {"vfat": "mount -t vfat", "exfat": "mount.exfat-fuse"}[request.param]
    script = (
        f"set -e; mkfs.{request.param} {image}; device=$(losetup -f --show {image}); "
        f"{mount} $device {point} || {{ losetup -d $device; false; }}"
    )
    made = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=False)
    if made.returncode:
        pytest.skip(f"no {request.param} can be mounted here: {made.stderr.strip()}")
    yield point
    subprocess.run(
        ["sh", "-c", f"umount {point}; losetup -j {image} | cut -d: -f1 | xargs losetup -d"], check=True
    )


def test_a_file_system_without_links(source: Path, other: Path, stick: Path) -> None:
    """Two names cannot be exchanged there, and engines are copied."""
    for out in (stick, stick / "b"):
        put(source, out)
        compile_bundle(out)
        (line,) = put(other, out)
        assert "is kept" in line
        (kept,) = compiled_engines(load(out, full=True))
        assert kept.fault(load(out), full=True) is None and load(out).manifest.name == "other"
        assert not [
            path
            for path in stick.rglob(".*")
            if path.suffix not in (".lock", ".json") and path.name != ".lock"
        ]

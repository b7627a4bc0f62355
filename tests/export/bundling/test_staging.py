"""Places of a bundle: mount points, links, other disks, bundles in use, and leftovers of killed builds."""

from __future__ import annotations

import errno
import json
import mmap
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from foveate.engines.disk import files, locks
from foveate.engines.errors import UserError
from foveate.export import methods
from foveate.export.bundling import publish, staging
from foveate.export.bundling.build_bundle import build
from foveate.export.bundling.staging import reserved
from foveate.export.models import llava
from foveate.runtime.bundle.compiled import compiled_engines
from foveate.runtime.bundle.loading import UNFINISHED, Bundle, load
from foveate.runtime.compiling.compile import compile_bundle

PUT = """
import shutil, sys
from pathlib import Path
from foveate.engines.errors import UserError
from foveate.export.bundling.publish import publish
from foveate.export.bundling.staging import reserved
from foveate.runtime.bundle.loading import Bundle, load
source, out = load(sys.argv[1]), Path(sys.argv[2])
try:
    with reserved(out) as place:
        for name in [*source.manifest.files, "bundle.json"]:
            (place.root / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(source.path / name, place.root / name)
        publish(place, Bundle(place.root, source.manifest), print)
except UserError as error:
    print(error)
    sys.exit(1)
load(out, full=True)
"""


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle, not compiled. Do not change it."""
    root = tmp_path_factory.mktemp("source") / "b"
    build(llava.tiny(), methods.load("none"), root, precision="fp32", dialects=["ort"])
    return root


@pytest.fixture
def other(source: Path, tmp_path: Path) -> Path:
    """Another bundle: its graphs are the same, its name is not."""
    root = shutil.copytree(source, tmp_path / "other")
    data = json.loads((root / "bundle.json").read_text())
    (root / "bundle.json").write_text(json.dumps(data | {"name": "other"}))
    return root


def put(source: Path, out: Path) -> list[str]:
    """Put a copy of the bundle to ``out`` as a build does; what was said."""
    said: list[str] = []
    bundle = load(source)
    with reserved(out) as place:
        write(bundle, place.root)
        publish.publish(place, Bundle(place.root, bundle.manifest), said.append)
    return said


def write(bundle: Bundle, root: Path) -> None:
    """Its files, without modes and times, which not every file system has."""
    for name in [*bundle.manifest.files, "bundle.json"]:
        (root / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(bundle.file(name), root / name)


def names(folder: Path) -> set[str]:
    """The names in a folder but locks, which stay."""
    return {path.name for path in folder.iterdir() if not path.name.endswith(".lock")}


def in_mounts(script: str, folder: Path, source: Path) -> subprocess.CompletedProcess[str]:
    """Run a shell script in a namespace of mounts; ``put OUT`` in it does what ``put`` does."""
    (folder / "put.py").write_text(PUT)
    define = f'put() {{ "{sys.executable}" put.py "{source}" "$1"; }}\nset -e\n'
    command = ["unshare", "--mount", "--map-root-user", "sh", "-c", define + script]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode and ("unshare" in done.stderr or "mount:" in done.stderr):
        pytest.skip(f"no mounts can be made here: {done.stderr.strip()}")
    return done


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


def test_a_link_stays_and_the_bundle_is_where_it_points(source: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    link = tmp_path / "link"
    link.symlink_to(disk / "later")
    for _ in range(2):
        put(source, link)
        assert link.is_symlink() and load(disk / "later", full=True)
        assert names(tmp_path) == {"disk", "link"} and names(disk) == {"later"}


def test_links_that_lead_nowhere(source: Path, tmp_path: Path) -> None:
    (tmp_path / "unmounted").symlink_to(tmp_path / "media" / "stick" / "b")
    (tmp_path / "loop").symlink_to("loop")
    for name, words in (("unmounted", "there is no folder .*stick, as when a disk"), ("loop", "form a loop")):
        with pytest.raises(UserError, match=words):
            put(source, tmp_path / name)


@pytest.mark.parametrize("what", ["foveate build", "foveate compile"])
def test_a_bundle_in_use_is_refused_before_any_work(source: Path, tmp_path: Path, what: str) -> None:
    out = tmp_path / "b"
    put(source, out)
    lock = locks.beside(out) if what == "foveate build" else locks.inside(out)
    words = (
        rf"b is in use \| {what} \(process {os.getpid()} on .* \| wait for its end, or choose another --out"
    )
    with locks.held(lock, what, refused="", remedy=""), pytest.raises(UserError, match=words), reserved(out):
        pytest.fail("it was reserved")


def test_a_compilation_waits_for_a_build_and_compiles_the_new_bundle(
    source: Path, other: Path, tmp_path: Path
) -> None:
    out = tmp_path / "b"
    put(source, out)
    said: list[str] = []
    with reserved(out) as place:
        command = [sys.executable, "-m", "foveate.runtime.cli", "compile", str(out)]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        while "waiting for foveate build" not in (line := process.stderr.readline()):
            assert line, "it did not wait"
        write(load(other), place.root)
        publish.publish(place, Bundle(place.root, load(other).manifest), said.append)
    assert process.communicate(timeout=120) and process.returncode == 0
    assert load(out).manifest.name == "other" and len(list(compiled_engines(load(out)))) == 1


def test_leftovers_of_killed_builds_are_removed_whatever_lives_under_their_ids(
    source: Path, tmp_path: Path
) -> None:
    out = tmp_path / "b[v1]"
    for name in (
        f".b[v1].building-{os.getpid()}",
        ".b[v1].building-1",
        ".b[v1].building-0a1b2c3d",
        ".b[v1].building-1.old",
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "weights").touch()
    (tmp_path / ".b[v1].building-2.old").symlink_to("elsewhere")
    others = {".bv.building-1", ".b[v1].building-x", ".c.building-1"}
    for name in others:
        (tmp_path / name).mkdir()
    put(source, out)
    assert names(tmp_path) == {"b[v1]", *others}


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


def test_files_that_are_too_large_for_the_disk_are_told_from_a_full_one(tmp_path: Path) -> None:
    for code, words in (
        (errno.EFBIG, "cannot hold files of that size"),
        (errno.ENOSPC, "the disk is full"),
        (errno.EDQUOT, "quota"),
    ):
        with pytest.raises(UserError, match=words), reserved(tmp_path / "b"):
            raise OSError(code, os.strerror(code))
    assert names(tmp_path) == set()


def test_too_little_room_is_said_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1 << 20)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    parts = llava.tiny()
    monkeypatch.setattr("foveate.export.bundling.build_bundle.assemble", None)
    object.__setattr__(parts.spec.decoder, "intermediate_size", 1 << 20)
    with pytest.raises(
        UserError, match=r"too little room .* has 1 MiB left, its language model alone takes \d+ MiB"
    ):
        build(parts, methods.load("none"), tmp_path / "b")


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

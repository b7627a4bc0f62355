"""The place of a build: links, bundles in use, leftovers of killed builds, and room on the disk."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from placing import names, put, write

from foveate.engines.disk import locks
from foveate.engines.errors import UserError
from foveate.export import methods
from foveate.export.build_bundle import build
from foveate.export.bundling import publish
from foveate.export.bundling.staging import reserved
from foveate.export.models import llava
from foveate.runtime.bundle.compiled import compiled_engines
from foveate.runtime.bundle.loading import Bundle, load


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
    monkeypatch.setattr("foveate.export.build_bundle.assemble", None)
    object.__setattr__(parts.spec.decoder, "intermediate_size", 1 << 20)
    with pytest.raises(
        UserError, match=r"too little room .* has 1 MiB left, its language model alone takes \d+ MiB"
    ):
        build(parts, methods.load("none"), tmp_path / "b")

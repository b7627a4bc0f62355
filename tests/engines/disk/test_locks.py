"""Locks: who is let in, who is named, and what killed processes and other hosts leave."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from foveate.engines.disk import locks, mounts
from foveate.engines.disk.lock_owner import Owner
from foveate.engines.errors import UserError

HOLD = """
import sys
from pathlib import Path
from foveate.engines.disk import locks
with locks.held(Path(sys.argv[1]), "foveate build", refused="no", remedy="wait"):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / ".b.lock"


@pytest.fixture
def other(file: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lock until its standard input ends."""
    command = [sys.executable, "-c", HOLD, str(file)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def held(file: Path, **options: Any) -> Any:
    return locks.held(file, "foveate compile", refused="b is in use", remedy="wait for its end", **options)


def test_a_lock_that_is_held_is_refused_with_the_name_of_its_holder(
    file: Path, other: subprocess.Popen[str]
) -> None:
    words = (
        rf"b is in use \| foveate build \(process {other.pid} on .*, since 20.* holds its lock .* "
        r"\| wait for its end"
    )
    with pytest.raises(UserError, match=words), held(file):
        pass
    other.communicate()
    with held(file):
        pass


def test_a_killed_holder_leaves_a_free_lock(file: Path, other: subprocess.Popen[str]) -> None:
    other.kill()
    other.wait()
    assert file.is_file()
    with held(file):
        assert "foveate compile" in file.read_text()
    assert file.read_text() == ""  # and the file stays


def test_a_lock_is_waited_for(file: Path, other: subprocess.Popen[str]) -> None:
    said: list[str] = []

    def wait(line: str) -> None:
        said.append(line)
        other.stdin.close()

    with held(file, wait=wait):
        assert other.wait(10) == 0
    (line,) = said
    assert line.startswith(f"waiting for foveate build (process {other.pid} on ")


def test_a_lock_in_a_folder_that_is_replaced_is_that_of_the_new_folder(tmp_path: Path) -> None:
    folder, moved = tmp_path / "b", tmp_path / "old"
    folder.mkdir()

    def replaced(line: str) -> None:
        folder.rename(moved)
        folder.mkdir()

    with held(locks.inside(folder)), held(locks.inside(folder), wait=replaced):
        assert locks.inside(folder).is_file() and locks.inside(moved).is_file()


def test_a_lock_of_another_user_that_can_only_be_read(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file.touch()
    opened = os.open

    def refuse(path: Any, flags: int, *mode: int) -> int:
        if flags & os.O_RDWR:
            raise PermissionError(errno.EACCES, "Permission denied")
        return opened(path, flags, *mode)

    monkeypatch.setattr(os, "open", refuse)
    with held(file), pytest.raises(UserError, match="b is in use"), held(file):
        pass


@pytest.fixture(params=["no flock", "nfs4", "fuse.sshfs"])
def unreliable(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """A file system whose locks do not count: it has none, or they may hold on one host alone."""
    if request.param == "no flock":

        def refuse(descriptor: int, how: int) -> None:
            raise OSError(errno.ENOLCK, "No locks available")

        monkeypatch.setattr(locks.fcntl, "flock", refuse)
    else:
        monkeypatch.setattr(mounts, "of", lambda path: mounts.Mount(Path("/"), request.param))
    return request.param


def leave(file: Path, **changes: Any) -> Path:
    """The second file, as a process left it that is like this one but for ``changes``."""
    owner = file.with_name(f"{file.name}.owner")
    owner.write_text(json.dumps(asdict(replace(Owner.here("foveate build"), **changes))))
    return owner


def test_without_reliable_locks_a_second_file_names_host_boot_and_start(file: Path, unreliable: str) -> None:
    owner = file.with_name(".b.lock.owner")
    with held(file):
        found = json.loads(owner.read_text())
        assert found["host"] and found["boot"] == Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        assert found["started"] == Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19]
        with pytest.raises(UserError, match="b is in use"), held(file):
            pass
    assert not owner.exists()


def test_leftovers_of_another_host_are_never_removed(file: Path, unreliable: str) -> None:
    owner = leave(file, host="orin-2", boot="0000")
    words = (
        r"is locked on another host.* by foveate build \(process \d+ on orin-2, .*cannot be seen from here"
        rf".*remove {owner}"
    )
    for options in ({}, {"wait": print}):
        with pytest.raises(UserError, match=words), held(file, **options):
            pass
    assert owner.exists()


@pytest.mark.parametrize(
    "changes", [{"pid": 999_999_999}, {"started": "1"}], ids=["ended", "an id that lives again"]
)
def test_leftovers_of_a_process_of_this_host_are_removed(
    file: Path, unreliable: str, changes: dict[str, Any]
) -> None:
    owner = leave(file, **changes)
    with held(file):
        assert json.loads(owner.read_text())["what"] == "foveate compile"


def test_without_any_locks_processes_of_other_containers_cannot_be_seen(file: Path, unreliable: str) -> None:
    """Flock on this host: a free lock tells that the other container's process ended."""
    owner = leave(file, space="pid:[1]", pid=1)
    if unreliable == "no flock":
        with pytest.raises(UserError, match="is locked in another container"), held(file):
            pass
        assert owner.exists()
    else:
        with held(file):
            pass


def test_mounts_are_read_as_linux_writes_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a b").mkdir()
    table = tmp_path / "mountinfo"
    table.write_text(
        "22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw\n"
        f"30 22 0:40 / {tmp_path}/a\\040b rw master:2 propagate_from:3 - fuse.sshfs host: rw\n"
    )
    monkeypatch.setattr(mounts, "_MOUNTINFO", table)
    assert mounts.of(tmp_path / "a b" / "new").kind == "fuse.sshfs"
    assert mounts.of(tmp_path).kind == "ext4"
    assert mounts.at_or_below(tmp_path) and mounts.at_or_below(tmp_path / "a b")
    (tmp_path / "a b" / "c").mkdir()
    assert not mounts.at_or_below(tmp_path / "a b" / "c")


def test_a_bind_mount_from_the_same_disk_is_seen(tmp_path: Path) -> None:
    """``os.path.ismount`` does not see it."""
    for name in ("source", "point"):
        (tmp_path / name).mkdir()
    check = (
        "import sys; from pathlib import Path; from foveate.engines.disk import mounts; "
        "print(mounts.at_or_below(Path(sys.argv[1])))"
    )
    python = f'"{sys.executable}" -c "{check}"'
    script = f"mount --bind source point && {python} point && {python} source"
    command = ["unshare", "--mount", "--map-root-user", "sh", "-c", script]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    if done.returncode and ("unshare" in done.stderr or "mount" in done.stderr):
        pytest.skip(f"no mounts can be made here: {done.stderr.strip()}")
    assert done.stdout.split() == ["True", "False"], done.stderr

"""Files and folders that are whole under their name or not there."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from foveate.engines.disk import files


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_gets_its_name_when_it_is_whole(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    file.write_text("old")
    with files.atomic_file(file) as part:
        part.write_text("new")
        assert file.read_text() == "old" and part.suffix == ".json" and part.parent == tmp_path
    assert file.read_text() == "new" and names(tmp_path) == ["a.json"]
    mask = os.umask(0)
    os.umask(mask)
    assert file.stat().st_mode & 0o777 == 0o666 & ~mask


def test_a_failure_leaves_the_old_file_alone(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    file.write_text("old")
    with pytest.raises(KeyboardInterrupt), files.atomic_file(file) as part:
        part.write_text("half")
        raise KeyboardInterrupt
    assert file.read_text() == "old" and names(tmp_path) == ["a.json"]


def test_behind_a_link_the_file_is_replaced_and_the_link_stays(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    link = tmp_path / "a.json"
    link.symlink_to("disk/b.json")
    with files.atomic_file(link) as part:
        part.write_text("new")
    assert link.is_symlink() and (tmp_path / "disk" / "b.json").read_text() == "new"


def test_leftovers_of_killed_writers_are_removed_and_files_of_living_ones_stay(
    tmp_path: Path,
) -> None:
    file = tmp_path / "a [1].json"
    code = (
        "import sys\nfrom foveate.engines.disk import files\n"
        "with files.atomic_file(sys.argv[1]) as part:\n"
        "    part.write_text('half'); print('written', flush=True); sys.stdin.read()\n"
    )
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(file)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    for writer in writers:
        assert writer.stdout.readline() == "written\n"
    writers[0].send_signal(signal.SIGKILL)
    writers[0].wait()
    assert len(names(tmp_path)) == 2
    with files.atomic_file(file) as part:
        part.write_text("whole")
    assert len(names(tmp_path)) == 2  # the file, and that of the writer that lives
    writers[1].communicate()
    assert writers[1].returncode == 0
    assert file.read_text() == "half" and names(tmp_path) == [file.name]


@pytest.mark.parametrize("exchanging", [True, False])
def test_a_folder_takes_the_place_of_another(
    tmp_path: Path, exchanging: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not exchanging:
        monkeypatch.setattr(files, "_exchange", lambda one, other: False)
    place = tmp_path / "b"
    for text in ("one", "two"):
        new = tmp_path / f".b.{text}"
        new.mkdir()
        (new / "file").write_text(text)
        old = files.put_folder(new, place)
    assert (place / "file").read_text() == "two"
    assert (old / "file").read_text() == "one"


def test_this_file_system_exchanges_names(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").write_text("b")
    if not files._exchange(tmp_path / "a", tmp_path / "b"):
        pytest.skip("neither kernel nor file system can")
    assert (tmp_path / "a").is_file() and (tmp_path / "b").is_dir()
    with pytest.raises(OSError) as error:
        files._exchange(tmp_path / "a", tmp_path / "nowhere" / "b")
    assert error.value.errno == errno.ENOENT


def test_both_folders_stay_if_one_cannot_be_put_in_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "_exchange", lambda one, other: False)
    (tmp_path / "b").mkdir()
    with pytest.raises(FileNotFoundError):
        files.put_folder(tmp_path / "gone", tmp_path / "b")
    assert names(tmp_path) == ["b"]


def test_two_hashes_are_shown_where_they_differ() -> None:
    one, other = "a" * 64, "a" * 40 + "b" * 24
    assert (
        files.difference(one, other) == "its SHA-256 from digit 37 on is aaaaaaaaaaaa, expected aaaabbbbbbbb"
    )
    assert files.difference("c" + "a" * 63, one) == "its SHA-256 is caaaaaaaaaaa, expected aaaaaaaaaaaa"

"""Pages of mapped files: let go, unless they were written to."""

from __future__ import annotations

import mmap
import sys
from pathlib import Path

import pytest

from foveate.engines.ort import page_release

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
SIZE = 64 * mmap.PAGESIZE


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "weights of a model.data"
    path.write_bytes(bytes(range(256)) * (SIZE // 256))
    return path


def resident(file: Path) -> int:
    """Bytes of it that this process has in memory."""
    ours, total = False, 0
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split()[0]:
            ours = line.endswith(str(file))
        elif ours and line.startswith("Rss:"):
            total += int(line.split()[1]) << 10
    return total


def test_pages_that_were_read_are_released_and_come_back(file: Path) -> None:
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_COPY) as mapped:
        before = mapped[:]
        assert resident(file) == SIZE
        page_release.release(file, SIZE)
        assert resident(file) == 0
        assert mapped[:] == before


def test_pages_that_were_written_stay(file: Path) -> None:
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_COPY) as mapped:
        mapped[100:104] = b"mine"
        page_release.release(file, SIZE)
        assert mapped[100:104] == b"mine"


def test_large_pieces_stay(file: Path) -> None:
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        assert len(mapped[:]) == SIZE
        page_release.release(file, SIZE - 1)
        assert resident(file) == SIZE


def test_other_files_stay(file: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.data"
    other.write_bytes(b"")
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        assert len(mapped[:]) == SIZE
        page_release.release(other, SIZE)
        assert resident(file) == SIZE


def test_systems_that_do_not_tell_are_left_alone(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_release, "_MAPS", file.with_name("none"))
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        assert len(mapped[:]) == SIZE
        page_release.release(file, SIZE)
        assert resident(file) == SIZE

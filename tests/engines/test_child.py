"""A process that works for another one ends with it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

CHILD = (
    "import os, sys, time; from foveate.engines.child import end_with; end_with({parent}); "
    "print(os.getpid(), flush=True); time.sleep(60)"
)


def test_a_child_of_a_killed_parent_ends() -> None:
    child = CHILD.format(parent="os.getppid()")
    parent = (
        f"import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', {child!r}]); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True) as process:
        pid = int(process.stdout.readline())
        assert is_running(pid)
        process.kill()
    deadline = time.monotonic() + 10
    while is_running(pid):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def is_running(pid: int) -> bool:
    """A zombie that nobody waits for has ended."""
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"


def test_a_child_whose_parent_ended_before_ends_at_once() -> None:
    done = subprocess.run(
        [sys.executable, "-c", CHILD.format(parent=os.getpid() + 1)], timeout=30, check=False
    )
    assert done.returncode == 1

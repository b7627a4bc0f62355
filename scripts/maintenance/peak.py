"""Run a command and print its wall time and the peak resident memory of its largest process.

``--within`` limits the command and its children to that many bytes in all, including mapped files and page
cache, like a smaller machine. It makes a control group, which needs root. A process that needs more is
killed; one that maps more than it needs reads pages again. Files that are already in the page cache do not
count, so empty it before (``echo 3 > /proc/sys/vm/drop_caches``).
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def limited(size: int) -> Iterator[Path]:
    """Make a control group of at most ``size`` bytes and yield its file of members.

    Ends the program if none can be made.
    """
    root = Path("/sys/fs/cgroup")
    old = (root / "memory").is_dir()  # version 1 has a tree for each resource
    group = (root / "memory" if old else root) / f"foveate-{os.getpid()}"
    try:
        group.mkdir()
    except OSError as error:
        sys.exit(f"no control group can be made | {group}: {error.strerror} | run as root, on Linux")
    try:
        (group / ("memory.limit_in_bytes" if old else "memory.max")).write_text(str(size))
        yield group / "cgroup.procs"
        peak = group / ("memory.max_usage_in_bytes" if old else "memory.peak")
        hits = (group / "memory.failcnt").read_text() if old else (group / "memory.events").read_text()
        print(
            f"all together {int(peak.read_text()) / 2**30:.2f} GiB; limit met: {hits.split()}",
            file=sys.stderr,
        )
    finally:
        group.rmdir()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--within", type=float, metavar="BYTES", help="Memory that the command may use (default: no limit)."
    )
    parser.add_argument("command", nargs=argparse.REMAINDER, help="Command to run.")
    args = parser.parse_args()
    start = time.monotonic()
    if args.within is None:
        code = subprocess.call(args.command)
    else:
        with limited(int(args.within)) as members:
            code = subprocess.call(args.command, preexec_fn=lambda: members.write_text(str(os.getpid())))
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20  # kibibytes on Linux
    print(f"{time.monotonic() - start:.1f} s, peak {peak:.2f} GiB: {' '.join(args.command)}", file=sys.stderr)
    return code

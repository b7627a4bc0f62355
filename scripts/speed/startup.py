"""Run ``foveate bench``, and time ``foveate run`` to its first word with a cold and a warm page cache.

The bundle must be compiled. Cold means that the bundle's files were dropped from the page cache before (Linux
only). Python and its libraries stay in it. Prints a table; the last line is one JSON document.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from foveate.runtime.cli import bench


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], epilog="All other options are those of foveate bench."
    )
    parser.add_argument("bundle", type=Path, help="Folder of a compiled bundle.")
    parser.add_argument(
        "--starts",
        type=int,
        default=2,
        help="Number of cold and of warm starts of foveate run (default: 2; 0 for none).",
    )
    args, others = parser.parse_known_args()
    starts = {} if args.starts == 0 else startup(args.bundle, args.starts)
    document = bench.run([str(args.bundle), *others])
    for kind, found in starts.items():
        print(
            f"foveate run, {kind} cache: first word after {statistics.median(found['first_word']):.2f} s, "
            f"peak memory {max(found['peak']) / 1e9:.2f} GB, mapped weights included"
        )
    print(json.dumps(document | {"startup": starts}))


def startup(bundle: Path, times: int) -> dict[str, dict[str, list[Any]]]:
    """Return for each start the seconds to the first output, and the peak memory in bytes."""
    found: dict[str, dict[str, list[Any]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        image = Path(folder, "noise.png")
        noise = np.random.default_rng(0).integers(0, 256, (480, 640, 3), np.uint8)
        Image.fromarray(noise).save(image)
        for kind in ("cold", "warm"):
            found[kind] = {"first_word": [], "peak": []}
            for _ in range(times):
                if kind == "cold":
                    forget(bundle)
                seconds, peak = first_word(bundle, image)
                found[kind]["first_word"].append(seconds)
                found[kind]["peak"].append(peak)
    return found


def forget(folder: Path) -> None:
    """Drop the folder's files from the page cache."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())  # a page that is not on the disk yet would stay
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def first_word(bundle: Path, image: Path) -> tuple[float, int]:
    command = [sys.executable, "-m", "foveate.runtime.cli", "run", str(bundle), "What is this?"]
    start = time.perf_counter()
    process = subprocess.Popen(
        [*command, "--image", str(image), "--max-new-tokens", "4"], stdout=subprocess.PIPE
    )
    process.stdout.read(1)
    seconds = time.perf_counter() - start
    process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(process.returncode)
    return seconds, usage.ru_maxrss << 10

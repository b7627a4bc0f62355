"""Measure the device side in a fresh environment: size on disk per package, and import times.

The wheel is built from this checkout and installed with its base requirements into a temporary environment.
Sizes are those of the files that pip recorded, including compiled ``.pyc`` files. Times are medians over
fresh processes with warm file caches, as wall time and CPU time, minus those of an interpreter that imports
nothing. On a busy machine CPU time is more reliable. The last line is one JSON document.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
IMPORTS = {
    "import numpy": "import numpy",
    "import foveate.runtime.pipeline": "import foveate.runtime.pipeline",
    "the same with onnxruntime": "import foveate.runtime.pipeline, foveate.engines.ort.backend",
    "foveate --version": "from foveate.runtime import cli; cli.main(['--version'])",
}
SIZES = """
import importlib.metadata as m, json
sizes = {}
for d in m.distributions():
    paths = {f.locate() for f in d.files or ()}
    sizes[d.metadata["Name"]] = [d.version, sum(p.stat().st_size for p in paths if p.is_file())]
print(json.dumps(sizes))
"""
HEAVY = (
    "import sys, foveate.runtime.pipeline; "
    "print([m for m in ('torch', 'transformers', 'onnx') if m in sys.modules])"
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--python", default=sys.executable, help="Interpreter of the fresh environment (default: this one)."
    )
    parser.add_argument(
        "--runs", type=int, default=10, help="Number of processes per import time (default: 10)."
    )
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        python = install(Path(folder), args.python)
        sizes = json.loads(run(python, "-c", SIZES))
        heavy = run(python, "-c", HEAVY).strip()
        idle = median_times(python, "pass", args.runs)
        times = {name: less(median_times(python, code, args.runs), idle) for name, code in IMPORTS.items()}
        version = run(python, "-c", "import platform; print(platform.python_version())").strip()
    sizes = {n: v for n, v in sizes.items() if n not in ("pip", "setuptools", "wheel")}
    for name, (release, size) in sorted(sizes.items(), key=lambda item: -item[1][1]):
        print(f"{name:<24}{release:>14}{size / 1e6:10.1f} MB")
    print(f"{'installed':<38}{sum(size for _, size in sizes.values()) / 1e6:10.1f} MB")
    for name, (clock, cpu) in times.items():
        print(f"{name:<38}{clock * 1e3:10.0f} ms{cpu * 1e3:10.0f} ms of the processor")
    print(f"torch, transformers, onnx after the import: {heavy}")
    report = {
        "python": version,
        "machine": platform.machine(),
        "bytes": {name: size for name, (_, size) in sizes.items()},
        "seconds": times,
    }
    print(json.dumps(report))
    return 0 if heavy == "[]" else 1


def install(folder: Path, interpreter: str) -> Path:
    """Make an environment with the wheel and its base requirements, and return its Python."""
    run(interpreter, "-m", "venv", folder / "env")
    python = folder / "env/bin/python"
    source = folder / "source"
    run("git", "clone", "--quiet", ROOT, source)  # a copy: building in place leaves build/ behind
    run(python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", source)
    return python


def median_times(python: Path, code: str, runs: int) -> tuple[float, float]:
    """Return the wall seconds and CPU seconds of a process that runs ``code``."""
    run(python, "-c", code)  # writes the .pyc files, warms the file cache
    clock, cpu = [], []
    for _ in range(runs):
        start, used = time.perf_counter(), children()
        run(python, "-c", code)
        clock.append(time.perf_counter() - start)
        cpu.append(children() - used)
    return statistics.median(clock), statistics.median(cpu)


def children() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def less(times: tuple[float, float], idle: tuple[float, float]) -> tuple[float, float]:
    return round(times[0] - idle[0], 4), round(times[1] - idle[1], 4)


def run(*command: str | Path) -> str:
    done = subprocess.run([*map(str, command)], stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout

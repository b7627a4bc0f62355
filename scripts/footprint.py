"""What the device side costs: a fresh environment goes in; its size on disk per package and its import times come out.

    python scripts/footprint.py [--python python3.10] [--runs 10]

The wheel is built from this checkout and installed with its base requirements into a temporary environment. The last
line is one JSON document. Sizes are of the files that pip recorded, compiled ``.pyc`` included; times are medians of
fresh processes with warm file caches, wall clock, less an interpreter that imports nothing.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
IMPORTS = {
    "numpy": "import numpy",
    "foveate.runtime.pipeline": "import foveate.runtime.pipeline",
    "with onnxruntime": "import foveate.runtime.pipeline, foveate.engines.ort",
    "command": "from foveate.runtime import cli; cli.main(['--version'])",
}
SIZES = """
import importlib.metadata as m, json
sizes = {}
for d in m.distributions():
    paths = {f.locate() for f in d.files or ()}
    sizes[d.metadata["Name"]] = [d.version, sum(p.stat().st_size for p in paths if p.is_file())]
print(json.dumps(sizes))
"""
HEAVY = "import sys, foveate.runtime.pipeline; print([m for m in ('torch', 'transformers', 'onnx') if m in sys.modules])"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--python", default=sys.executable, help="the interpreter of the fresh environment")
    parser.add_argument("--runs", type=int, default=10, help="processes per import time")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        python = install(Path(folder), args.python)
        sizes = json.loads(run(python, "-c", SIZES))
        heavy = run(python, "-c", HEAVY).strip()
        times = {name: median_time(python, code, args.runs) for name, code in IMPORTS.items()}
        empty = median_time(python, "pass", args.runs)
        version = run(python, "-c", "import platform; print(platform.python_version())").strip()
    sizes = {n: v for n, v in sizes.items() if n not in ("pip", "setuptools", "wheel")}
    for name, (release, size) in sorted(sizes.items(), key=lambda item: -item[1][1]):
        print(f"{name:<24}{release:>14}{size / 1e6:10.1f} MB")
    print(f"{'installed':<38}{sum(size for _, size in sizes.values()) / 1e6:10.1f} MB")
    for name, seconds in times.items():
        print(f"import {name:<31}{(seconds - empty) * 1e3:10.0f} ms")
    print(f"torch, transformers, onnx after the import: {heavy}")
    report = {
        "python": version,
        "machine": platform.machine(),
        "bytes": {name: size for name, (_, size) in sizes.items()},
        "seconds": {name: round(seconds - empty, 4) for name, seconds in times.items()},
        "interpreter_seconds": round(empty, 4),
    }
    print(json.dumps(report))
    return 0 if heavy == "[]" else 1


def install(folder: Path, interpreter: str) -> Path:
    """The Python of a new environment that holds the wheel and its base requirements."""
    run(interpreter, "-m", "venv", folder / "env")
    python = folder / "env/bin/python"
    source = folder / "source"
    run("git", "clone", "--quiet", ROOT, source)  # a copy: building in place leaves build/ behind
    run(python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", source)
    return python


def median_time(python: Path, code: str, runs: int) -> float:
    run(python, "-c", code)  # writes the .pyc files, warms the file cache
    seconds = []
    for _ in range(runs):
        start = time.perf_counter()
        run(python, "-c", code)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def run(*command: str | Path) -> str:
    done = subprocess.run([*map(str, command)], stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout


if __name__ == "__main__":
    sys.exit(main())

"""Putting a bundle to its place as a build does, in this process or among mounts."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from foveate.export.bundling import publish
from foveate.export.bundling.staging import reserved
from foveate.runtime.bundle.loading import Bundle, load

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

"""Installs what ``foveate pack`` packed or ``foveate deploy`` sent, on a device without network.

Uses only the standard library. A pack is a zip archive with this file as ``__main__.py``: ``python3 NAME.pyz
--to ~/foveate``. A deployment is the same files in a folder, from which they are moved. In both,
``pack.json`` names every file with its size and SHA-256.

    ROOT/runtimes/<digest>/   an environment with the wheels; ROOT/runtime links to the one in use
    ROOT/bundles/<name>/      the bundle

Everything is completed and checked before a link or a rename puts it in place. A power cut at any moment
leaves the old state or the new one. The next run continues where this one stopped.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib
import json
import os
import platform
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

try:
    fcntl: ModuleType | None = importlib.import_module("fcntl")
except ImportError:  # Windows
    fcntl = None

__all__ = ["main"]

_SPARE = 200 << 20  # bytes that stay free


class Zip:
    """The files of a pack."""

    def __init__(self, path: Path) -> None:
        self._zip = zipfile.ZipFile(path)

    def read(self, name: str) -> bytes:
        """Return the content of a file."""
        return self._zip.read(name)

    def put(self, name: str, target: Path) -> None:
        """Write a file to ``target`` and flush it."""
        with self._zip.open(name) as source, target.open("wb") as file:
            shutil.copyfileobj(source, file, 1 << 20)
            file.flush()
            os.fsync(file.fileno())


class Folder:
    """The files of a deployment. Those of the bundle are moved, so that the disk holds them only once."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self, name: str) -> bytes:
        """Return the content of a file."""
        return (self._path / name).read_bytes()

    def put(self, name: str, target: Path) -> None:
        """Move or copy a file to ``target``."""
        source = self._path / name
        if name.startswith("bundle/"):
            os.replace(source, target)
        else:
            shutil.copyfile(source, target)


def _folder(text: str) -> Path:
    """Path("") would be the current folder."""
    if not text:
        raise argparse.ArgumentTypeError("the value is empty")
    return Path(text)


def main(argv: list[str] | None = None) -> int:
    """Run the installer and return its exit status."""
    parser = argparse.ArgumentParser(description="Install foveate and a bundle, without network.")
    parser.add_argument(
        "--to",
        type=_folder,
        default=Path.home() / "foveate",
        metavar="ROOT",
        help="Folder to install into (default: ~/foveate).",
    )
    parser.add_argument(
        "--only", choices=("runtime", "bundle"), help="Install only this part (default: both)."
    )
    parser.add_argument(
        "--keep-previous",
        action="store_true",
        help="Keep the bundle that is replaced, for --rollback (default: remove it).",
    )
    parser.add_argument("--rollback", metavar="NAME", help="Only put the previous bundle NAME back.")
    parser.add_argument(
        "--force",
        action="store_true",
        help="Install even if the pack is for another machine or Python (default: refuse).",
    )
    args = parser.parse_args(argv)
    here = Path(sys.argv[0] if zipfile.is_zipfile(sys.argv[0]) else __file__)
    source = Zip(here) if zipfile.is_zipfile(here) else Folder(here.parent)
    try:
        if args.rollback:
            _roll_back(args.to.expanduser().absolute() / "bundles", args.rollback)
            return 0
        pack = json.loads(source.read("pack.json"))
        _fits(pack, args.force)
        root = args.to.expanduser().absolute()
        root.mkdir(parents=True, exist_ok=True)
        if args.only != "bundle":
            _runtime(source, pack, root)
        if args.only != "runtime":
            _bundle(source, pack, root, args.keep_previous)
    except (OSError, ValueError, KeyError, zipfile.BadZipFile, subprocess.CalledProcessError) as error:
        print(f"foveate: not installed | {error} | run it again, or copy the pack again", file=sys.stderr)
        return 1
    print(f"installed in {root}\nnext: {root}/runtime/bin/foveate compile {root}/bundles/{pack['bundle']}")
    return 0


def _fits(pack: dict, force: bool) -> None:
    here = {"machine": platform.machine(), "python": "{}.{}".format(*sys.version_info[:2])}
    wrong = [f"{key} {pack[key]}, this has {here[key]}" for key in here if pack[key] != here[key]]
    if wrong and not force:
        raise ValueError(f"it is for {' and '.join(wrong)}")


def _runtime(source: Zip | Folder, pack: dict, root: Path) -> None:
    """Install an environment that sees the system's packages, such as TensorRT."""
    names = [name for name in pack["files"] if name.startswith("wheels/")]
    target = root / "runtimes" / pack["runtime"]
    if not (target / "complete").is_file():
        shutil.rmtree(target, ignore_errors=True)
        wheels = target / "wheels"
        wheels.mkdir(parents=True)
        _room(target, sum(pack["files"][name]["size"] for name in names) * 4)
        for name in names:
            _put(source, pack, name, wheels / Path(name).name)
        # without ensurepip, which is a separate package on Ubuntu; pip comes as a wheel
        _call(sys.executable, "-m", "venv", "--without-pip", "--system-site-packages", str(target))
        pip = next(wheels.glob("pip-*.whl"))
        install = [
            "install",
            "--quiet",
            "--no-index",
            "--no-cache-dir",
            "--find-links",
            str(wheels),
            *pack["install"],
        ]
        _call(str(target / "bin" / "python"), f"{pip}/pip", *install)
        shutil.rmtree(wheels)
        _switch_telemetry_off(target)
        os.sync()
    done = target / "complete"
    made_from = pack.get("made_from", "")  # `foveate deploy` sends no wheels if this is the same
    if not done.is_file() or done.read_text(encoding="utf-8") != made_from:
        done.write_text(made_from, encoding="utf-8")
    link = root / f".runtime.{os.getpid()}"
    link.unlink(missing_ok=True)
    link.symlink_to(Path("runtimes") / pack["runtime"])
    os.replace(link, root / "runtime")
    for other in (root / "runtimes").iterdir():
        if other.name != pack["runtime"]:
            shutil.rmtree(other, ignore_errors=True)


def _switch_telemetry_off(target: Path) -> None:
    """Switch telemetry off for every program of the environment (docs/offline.md).

    This covers programs that import ONNX Runtime before foveate too.
    """
    (packages,) = target.glob("lib/python3*/site-packages")
    line = 'import os; os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")\n'
    (packages / "foveate_telemetry.pth").write_text(line, encoding="utf-8")


def _bundle(source: Zip | Folder, pack: dict, root: Path, keep: bool) -> None:
    """Install the bundle. With ``keep``, the one it replaces stays as ``.NAME.previous``.

    If there is such a one already, the bundle in place never passed its check. Then that one is removed.
    """
    names = [name for name in pack["files"] if name.startswith("bundle/")]
    target, work = root / "bundles" / pack["bundle"], root / "bundles" / f".{pack['bundle']}.installing"
    manifest = "bundle/bundle.json"
    if (target / "bundle.json").is_file() and _same(target / "bundle.json", pack["files"][manifest]):
        shutil.rmtree(work, ignore_errors=True)
        return  # bundle.json has every file's hash, and the bundle was complete when it was put here
    work.mkdir(parents=True, exist_ok=True)
    missing = [name for name in names if not _same(work / name.partition("/")[2], pack["files"][name])]
    if isinstance(source, Zip):
        _room(work, sum(pack["files"][name]["size"] for name in missing))
    for name in missing:
        place = work / name.partition("/")[2]
        place.parent.mkdir(parents=True, exist_ok=True)
        _put(source, pack, name, place)
    os.sync()
    old = root / "bundles" / f".{pack['bundle']}.old"
    shutil.rmtree(old, ignore_errors=True)
    previous = _previous(root / "bundles", pack["bundle"])
    aside = previous if keep and not previous.exists() else old
    with _unused(target):
        engines = sorted(path.parent.name for path in target.glob("engines/[!.]*/engine.json"))
        if target.exists():
            target.rename(aside)
        work.rename(target)
    shutil.rmtree(old, ignore_errors=True)
    if engines and aside == old:
        print(f"the compiled engines {', '.join(engines)} of the older bundle are gone")


def _previous(bundles: Path, name: str) -> Path:
    return bundles / f".{name}.previous"


def _roll_back(bundles: Path, name: str) -> None:
    """Put the previous bundle in the place of the one there. Raises ValueError if there is none."""
    target, previous, old = bundles / name, _previous(bundles, name), bundles / f".{name}.old"
    if not previous.is_dir():
        raise ValueError(
            f"there is no previous bundle {name}: it is removed when the new one passed its check"
        )
    shutil.rmtree(old, ignore_errors=True)
    with _unused(target):
        if target.exists():
            target.rename(old)
        previous.rename(target)
    shutil.rmtree(old, ignore_errors=True)
    print(f"the previous bundle is back in {target}")


@contextlib.contextmanager
def _unused(bundle: Path) -> Iterator[None]:
    """Hold the lock that `foveate compile` takes to write into a bundle. Raises ValueError if it holds it."""
    if fcntl is None or not bundle.is_dir():
        yield
        return
    with (bundle / ".lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(f"{bundle} is in use: a compilation writes into it") from error
        except OSError:  # a file system without such locks
            print(f"whether {bundle} is in use cannot be told on its file system", file=sys.stderr)
        yield


def _put(source: Zip | Folder, pack: dict, name: str, target: Path) -> None:
    part = target.with_name(f".{target.name}.part")
    source.put(name, part)
    if not _same(part, pack["files"][name]):
        part.unlink()
        raise ValueError(f"{name} is not what was packed")
    os.replace(part, target)


def _same(path: Path, expected: dict) -> bool:
    """Return True if ``path`` has the expected size and SHA-256."""
    if not path.is_file() or path.stat().st_size != expected["size"]:
        return False
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest() == expected["sha256"]


def _room(folder: Path, size: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < size + _SPARE:
        raise ValueError(f"{free / 1e9:.1f} GB are free on the disk, {(size + _SPARE) / 1e9:.1f} are needed")


def _call(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(" ".join(f"{done.stdout} {done.stderr}".split())[-500:] or f"{command[0]} failed")


if __name__ == "__main__":
    sys.exit(main())

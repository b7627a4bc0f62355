"""Move a finished bundle to its final place, in one step if possible.

* A folder is exchanged by renaming: at every moment the old bundle or the new one is there.
* If the folder cannot be renamed (a mount point, a folder in a lower layer of a container image), files are
  moved into it one by one, ``bundle.json`` last. A file is never overwritten, so programs that have mapped
  the old files keep working. Without ``bundle.json`` the folder is an unfinished build, which readers refuse
  and the next build replaces.

Compiled engines stay if they were made from the same files. The caller is told about each engine that is
dropped.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from foveate.engines.disk import files
from foveate.engines.errors import UserError
from foveate.export.bundling.staging import FULL, Place, in_the_way, unfinished_files
from foveate.runtime.bundle.compiled import CompiledEngine, compile_command, compiled_engines_in, sources
from foveate.runtime.bundle.loading import UNFINISHED, Bundle

__all__ = ["compiled", "publish"]

_ENGINES = "engines"


def compiled(folder: Path, bundle: Bundle | None = None) -> list[CompiledEngine]:
    """Return the engines in ``folder``; with ``bundle``, only those that were compiled from its files."""
    try:
        found = compiled_engines_in(folder)
    except UserError:  # an engine with a damaged record cannot be run
        return []
    if bundle is None:
        return found
    dialects = bundle.manifest.dialects
    return [
        made for made in found if made.dialect in dialects and made.sources == sources(bundle, made.dialect)
    ]


def publish(place: Place, bundle: Bundle, say: Callable[[str], None]) -> None:
    """Move the bundle from ``place.root`` to ``place.folder``, whose locks are held.

    ``say`` is told about engines that are kept and dropped. If the bundle cannot be moved there, it is kept
    whole beside the folder, and UserError says where.
    """
    before, fitting = compiled(place.folder), compiled(place.folder, bundle)
    files.flush(place.root)
    try:
        if reason := in_the_way(place.folder, place.name):
            raise OSError(reason)
        if place.inside:
            kept = fitting
            _put_inside(place, {made.key for made in kept})
        else:
            kept = [made for made in fitting if _carried(made, place.root)]
            _carry_timings(place)
            if not _exchanged(place):
                _put_inside(place, {made.key for made in kept})
    except OSError as error:
        raise _kept_beside(place, error) from error
    for made in before:
        if any(made.key == each.key for each in kept):
            say(f"the compiled engine {made.key} is kept: it was made from the same files")
        else:
            command = compile_command(Bundle(place.folder, bundle.manifest), made)
            say(f"the compiled engine {made.key} of the older bundle is gone; to compile it again: {command}")


def _carried(made: CompiledEngine, root: Path) -> bool:
    """Bring the files of an engine into ``root``, as hard links if the file system has them.

    Returns False if the disk is full.
    """
    target = root / _ENGINES / made.key
    try:
        target.mkdir(parents=True)
        for path in made.path.iterdir():
            try:
                os.link(path, target / path.name)
            except OSError:  # FAT has no links
                shutil.copy2(path, target / path.name)
        files.flush(target)
    except OSError as error:
        shutil.rmtree(target, ignore_errors=True)
        if error.errno not in FULL:
            raise
        return False
    return True


def _carry_timings(place: Place) -> None:
    """Copy the compilers' timing caches of this machine, which serve every bundle."""
    for path in (place.folder / _ENGINES).glob("*.cache"):
        with contextlib.suppress(OSError):  # without them a compiler measures again
            (place.root / _ENGINES).mkdir(exist_ok=True)
            shutil.copy2(path, place.root / _ENGINES / path.name)


def _exchanged(place: Place) -> bool:
    """Exchange the folders by renaming, and return whether that was possible.

    ``staging.reserved`` removes the old folder.
    """
    try:
        files.put_folder(place.root, place.folder)
    except OSError:
        if not place.folder.is_dir():
            raise
        return False
    return True


def _put_inside(place: Place, engines: set[str]) -> None:
    """Move the files of ``place.root`` into ``place.folder``, ``bundle.json`` last.

    Only ``engines`` of the old bundle stay.
    """
    root, folder = place.root, place.folder
    new = sorted(path.relative_to(root) for path in root.rglob("*") if path.is_file())
    new = [path for path in new if path.parts[0] != _ENGINES]
    with files.atomic_file(folder / UNFINISHED) as part:
        names = sorted({path.as_posix() for path in new} | {*_files_of(folder), *unfinished_files(folder)})
        part.write_text(json.dumps(names), encoding="utf-8")
    (folder / "bundle.json").unlink(missing_ok=True)
    files.flush_folder(folder)
    for name in names:
        (folder / name).unlink(missing_ok=True)
    _drop_engines(folder / _ENGINES, engines)
    for path in [*(each for each in new if each.name != "bundle.json"), Path("bundle.json")]:
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        (root / path).rename(target)
    for parent in {(folder / path).parent for path in new}:
        files.flush_folder(parent)
    (folder / UNFINISHED).unlink()


def _files_of(folder: Path) -> list[str]:
    """Return the files that the old bundle's manifest names. Other files belong to the user."""
    try:
        named = json.loads((folder / "bundle.json").read_text(encoding="utf-8"))["files"]
    except (OSError, ValueError, KeyError, TypeError):  # no manifest, or a damaged one
        return []
    return [name for name in named if not Path(name).is_absolute() and ".." not in Path(name).parts]


def _drop_engines(engines: Path, kept: set[str]) -> None:
    if not engines.is_dir():
        return
    for path in engines.iterdir():
        if path.name in kept or path.name.endswith(".cache"):  # a compiler's timings serve any model
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _kept_beside(place: Place, error: OSError) -> UserError:
    """Keep the finished bundle, which took hours, under another name, and return the error that says so."""
    number = 1
    while os.path.lexists(target := place.folder.with_name(f"{place.folder.name}.new{number}")):
        number += 1
    if place.inside:
        target = place.folder / target.name
    with contextlib.suppress(OSError):  # then it stays where it was built, and is removed with it
        place.root.rename(target)
        return UserError(
            f"cannot put the bundle to {place.folder} | {error.strerror or error} "
            f"| it is whole in {target}: move it by hand"
        )
    return UserError(
        f"cannot put the bundle to {place.folder} | {error.strerror or error} | choose another --out"
    )

"""A bundle that is whole takes the place of what stood there, in one step where that can be.

* A folder is exchanged by renaming: at every moment the old bundle or the new one is there.
* Where the folder cannot be renamed (a mount point, a folder of an image's lower layer), files are moved into
  it one by one, ``bundle.json`` last. A file is never written over, so programs that have the old ones mapped
  go on with them. Without ``bundle.json`` the folder is an unfinished build, which readers refuse and the
  next build replaces.

Compiled engines that the new files fit stay; of each that is dropped the caller is told.
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
from foveate.runtime.bundle.compiled import Plan, compile_command, plans_in, sources
from foveate.runtime.bundle.loading import UNFINISHED, Bundle

__all__ = ["compiled", "publish"]

_ENGINES = "engines"


def compiled(folder: Path, bundle: Bundle | None = None) -> list[Plan]:
    """The engines in ``folder``; with ``bundle`` those alone that were compiled from its files."""
    try:
        found = plans_in(folder)
    except UserError:  # one has a damaged record, and cannot be run
        return []
    if bundle is None:
        return found
    dialects = bundle.manifest.dialects
    return [
        plan for plan in found if plan.dialect in dialects and plan.sources == sources(bundle, plan.dialect)
    ]


def publish(place: Place, bundle: Bundle, say: Callable[[str], None]) -> None:
    """Put the bundle in ``place.root`` to ``place.folder``, whose locks are held; ``say`` is told of engines
    that are kept and dropped.

    When it cannot be put there, it is kept beside, whole. Raises UserError.
    """
    before, fitting = compiled(place.folder), compiled(place.folder, bundle)
    files.flush(place.root)
    try:
        if reason := in_the_way(place.folder, place.name):
            raise OSError(reason)
        if place.inside:
            kept = fitting
            _put_inside(place, {plan.key for plan in kept})
        else:
            kept = [plan for plan in fitting if _carried(plan, place.root)]
            _carry_timings(place)
            if not _exchanged(place):
                _put_inside(place, {plan.key for plan in kept})
    except OSError as error:
        raise _kept_beside(place, error) from error
    for plan in before:
        if any(plan.key == each.key for each in kept):
            say(f"the compiled engine {plan.key} is kept: it was made from the same files")
        else:
            command = compile_command(Bundle(place.folder, bundle.manifest), plan)
            say(f"the compiled engine {plan.key} of the older bundle is gone; to compile it again: {command}")


def _carried(plan: Plan, root: Path) -> bool:
    """Whether the files of an engine could be brought into ``root``: as links where the file system has
    them."""
    target = root / _ENGINES / plan.key
    try:
        target.mkdir(parents=True)
        for path in plan.path.iterdir():
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
    """What compilers measured on this machine, which serves every bundle."""
    for path in (place.folder / _ENGINES).glob("*.cache"):
        with contextlib.suppress(OSError):  # they are measured again
            (place.root / _ENGINES).mkdir(exist_ok=True)
            shutil.copy2(path, place.root / _ENGINES / path.name)


def _exchanged(place: Place) -> bool:
    """Whether the folders could be exchanged by renaming; whoever reserved the place removes the old one."""
    try:
        files.put_folder(place.root, place.folder)
    except OSError:
        if not place.folder.is_dir():
            raise
        return False
    return True


def _put_inside(place: Place, engines: set[str]) -> None:
    """Move the files of ``place.root`` into ``place.folder``, ``bundle.json`` last; of the older bundle
    ``engines`` stay."""
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
    """What the manifest of the older bundle names; its other files are the user's."""
    try:
        named = json.loads((folder / "bundle.json").read_text(encoding="utf-8"))["files"]
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
    ):  # none, or damaged: its files are written over one by one
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
    """The finished bundle under another name, since it took hours; in words."""
    number = 1
    while os.path.lexists(target := place.folder.with_name(f"{place.folder.name}.new{number}")):
        number += 1
    if place.inside:
        target = place.folder / target.name
    with contextlib.suppress(OSError):  # then it stays where it was built, and is removed with it
        place.root.rename(target)
        return UserError(
            f"cannot put the bundle to {place.folder} | {error.strerror or error} | it is whole in {target}: move it by hand"
        )
    return UserError(
        f"cannot put the bundle to {place.folder} | {error.strerror or error} | choose another --out"
    )

"""``foveate pack``: writes one file with a bundle, the wheels for the device's Python, and an installer.

To install it on the device, without network, run ``python3 NAME.pyz --to ~/foveate``
(``jetson/deployment/installer.py``).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import tempfile
import zipfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from foveate.engines.disk.files import atomic_file, sha256
from foveate.engines.errors import UserError
from foveate.engines.trt.cuda.requirement import PACKAGES
from foveate.jetson.deployment import wheels
from foveate.jetson.deployment.wheels import Target
from foveate.jetson.device.devices import JETPACKS, jetpack_named
from foveate.runtime.bundle import licence
from foveate.runtime.bundle.loading import load
from foveate.runtime.cli import Parser, options

__all__ = ["add_wheels", "contents", "gather", "installer", "made_from", "main", "pack"]

_VIDEO = "opencv-python-headless"  # the extra ``video``
_EXTRAS = (_VIDEO, *PACKAGES)  # installed if the pack has a wheel of it


def main(argv: list[str]) -> int:
    """Run the command and return its exit status. Raises UserError."""
    parser = Parser(
        prog="foveate pack",
        description="Write a bundle, the runtime and an installer to one file, for a device without network.",
    )
    parser.add_argument("bundle", metavar="BUNDLE", help="The folder of a bundle.")
    parser.add_argument(
        "--jetpack",
        default="6.2",
        help=f"Pack for a device with this JetPack version: {', '.join(j.jetpack for j in JETPACKS)}, "
        "or a patch release of these (default: 6.2).",
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE.pyz",
        help="Write this file (default: BUNDLE.jetpackVERSION.pyz in the current folder).",
    )
    add_wheels(parser)
    args = parser.parse_args(argv)
    system = jetpack_named(args.jetpack)
    if system.jetpack != args.jetpack:
        options.say(f"JetPack {args.jetpack} is not in the table: packed as {system.jetpack}, of its family")
    target = Target("aarch64", system.python, system.glibc, system.cuda)
    out = args.out or Path(f"{Path(args.bundle).absolute().name}.jetpack{args.jetpack}.pyz")
    pack(Path(args.bundle), target, out, args.wheels, args.video)
    print(f"{out}\nnext: copy it to the device and run: python3 {out.name} --to ~/foveate")
    return 0


def pack(bundle: Path, target: Target, out: Path, wheels_in: Path | None = None, video: bool = False) -> None:
    """Write the pack ``out`` atomically. Raises UserError.

    ``wheels_in`` is a folder with the wheels; None collects them. ``video`` adds OpenCV.
    """
    manifest = load(bundle, full=True, progress=lambda name: options.say(f"checking {name}")).manifest
    for line in licence.lines(manifest.licence):
        options.say(f"licence of the {line}")
    with tempfile.TemporaryDirectory() as folder:
        wheels_in = wheels_in or gather(target, Path(folder), video)
        facts = contents(bundle, manifest.name, wheels_in, target)
        try:
            # stored, since weights do not compress
            with atomic_file(out) as part, zipfile.ZipFile(part, "w", zipfile.ZIP_STORED) as archive:
                archive.writestr("__main__.py", installer())
                archive.writestr("pack.json", json.dumps(facts, indent=1))
                for name in facts["files"]:
                    archive.write(_source(name, bundle, wheels_in), name)
        except OSError as error:
            raise UserError(f"cannot write {out} | {error.strerror} | choose another --out") from error
    options.say(f"{out.stat().st_size / 1e6:.1f} MB")


def add_wheels(parser: argparse.ArgumentParser) -> None:
    """Add ``--video`` and ``--wheels``."""
    parser.add_argument(
        "--video", action="store_true", help="Include OpenCV, which `foveate watch` needs (default: without)."
    )
    parser.add_argument(
        "--wheels",
        type=Path,
        metavar="DIR",
        help="Use the wheels in this folder, which must include pip (default: download them).",
    )


def gather(target: Target, folder: Path, video: bool) -> Path:
    """Collect the wheels for ``target`` in ``folder`` and return it. Raises UserError."""
    options.say(f"collecting wheels for {target.machine}, Python {target.python}")
    for missing in wheels.collect(target, folder, [_VIDEO] if video else []):
        options.say(f"no wheel of {missing} fits: TensorRT's engines will use the libcudart of the device")
    return folder


def made_from(target: Target, wheels_in: Path | None, video: bool) -> str:
    """Return a hash that changes if other wheels may be packed, without collecting them."""
    if wheels_in is None:
        return wheels.fingerprint(target, [_VIDEO] if video else [])
    return _digest([sha256(wheel) for wheel in sorted(wheels_in.glob("*.whl"))])


def contents(bundle: Path, name: str, wheels_in: Path | None, target: Target) -> dict[str, Any]:
    """Return the content of ``pack.json``, which describes every file of a pack. Raises UserError.

    ``wheels_in`` None: the device has the wheels, and the pack is only for its bundle.
    """
    wheel_files = [] if wheels_in is None else sorted(wheels_in.glob("*.whl"))
    names = [f"wheels/{wheel.name}" for wheel in wheel_files]
    if wheels_in is not None and not any(each.startswith("wheels/foveate-") for each in names):
        raise UserError(
            f"no wheel of foveate in {wheels_in} | got {len(names)} wheels | leave --wheels out", code=2
        )
    manifest = load(bundle).manifest
    files = {n: _describe(wheel) for n, wheel in zip(names, wheel_files, strict=True)}
    files |= {f"bundle/{name}": asdict(entry) for name, entry in manifest.files.items()}
    files["bundle/bundle.json"] = _describe(bundle / "bundle.json")
    runtime = _digest([files[n]["sha256"] for n in names])[:12]
    return {
        "bundle": name,
        "machine": target.machine,
        "python": target.python,
        "runtime": runtime,
        "install": ["foveate", *(e for e in _EXTRAS if any(e.replace("-", "_") in name for name in names))],
        "files": files,
    }


def installer() -> str:
    """Return the source of the installer."""
    return Path(__file__).with_name("installer.py").read_text(encoding="utf-8")


def _digest(hashes: list[str]) -> str:
    return hashlib.sha256(json.dumps(hashes).encode()).hexdigest()


def _describe(path: Path) -> dict[str, Any]:
    return {"size": path.stat().st_size, "sha256": sha256(path)}


def _source(name: str, bundle: Path, wheels_in: Path) -> Path:
    kind, _, rest = name.partition("/")
    return (wheels_in if kind == "wheels" else bundle) / rest

"""Wheels by hand, and this machine as a target of deployment."""

from __future__ import annotations

import base64
import hashlib
import json
import platform
import sys
import zipfile
from pathlib import Path

from foveate.jetson.deployment.wheels import Target

HERE = Target(platform.machine(), "{}.{}".format(*sys.version_info[:2]), platform.libc_ver()[1] or "2.35")


def make_wheel(folder: Path, name: str, files: dict[str, str], requires: tuple[str, ...] = ()) -> Path:
    """Write a wheel with these files and requirements."""
    info = f"{name}-0.1.0.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: 0.1.0\n"
    files = files | {
        f"{info}/METADATA": metadata + "".join(f"Requires-Dist: {need}\n" for need in requires),
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    rows = []
    for path, text in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
        rows.append(f"{path},sha256={digest},{len(text.encode())}")
    files[f"{info}/RECORD"] = "\n".join([*rows, f"{info}/RECORD,,", ""])
    wheel = folder / f"{name}-0.1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for path, text in files.items():
            archive.writestr(path, text)
    return wheel


def rename(source: Path, name: str) -> None:
    """Give a bundle another name."""
    data = json.loads((source / "bundle.json").read_text())
    (source / "bundle.json").write_text(json.dumps(data | {"name": name}))

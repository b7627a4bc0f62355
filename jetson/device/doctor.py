"""``foveate doctor``: shows what is on this machine, what is wrong with it, and how to fix it.

Every finding comes with a command that fixes it. A problem keeps something from working, or makes it slow or
run out of memory on a device of this size. Advice is what a careful engineer would do besides. Things that
are in order are not mentioned, and nothing is changed. If all are, it says that nothing is wrong.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from foveate.engines.errors import UserError
from foveate.jetson.device.findings import DISK, Finding, examine, refused_dialect
from foveate.jetson.device.inventory import Inventory, look
from foveate.jetson.device.system import System
from foveate.runtime.cli import Parser

__all__ = ["main", "to_json"]

_GB = 1e9


def main(argv: list[str]) -> int:
    """Run the command and return its exit status. Raises UserError."""
    parser = Parser(
        prog="foveate doctor",
        description="Show what is on this machine, what is wrong with it, and how to fix it.",
    )
    parser.add_argument(
        "--disk",
        type=float,
        metavar="GB",
        help="Require this many gigabytes of free disk (default: 5).",
        default=DISK / _GB,
    )
    parser.add_argument(
        "--memory",
        type=float,
        metavar="GB",
        help="Require this many gigabytes of free memory (default: 0).",
        default=0,
    )
    parser.add_argument(
        "--path",
        type=Path,
        default=Path("."),
        help="Check the free disk where this folder lies (default: the current folder).",
    )
    parser.add_argument(
        "--json",
        action="store_true",
        help="Print the facts and findings as one JSON document (default: as text).",
    )
    args = parser.parse_args(argv)
    if not args.path.is_dir():
        raise UserError(
            f"no such folder: {args.path} | expected the folder for bundles | leave --path out", code=2
        )
    here = look(System(), args.path)
    found = examine(here, args.disk * _GB, args.memory * _GB)
    if args.json:
        print(json.dumps({"machine": to_json(here), "findings": [asdict(f) for f in found]}))
    else:
        print("\n".join([*_facts(here), *_report(found)]))
    return int(any(finding.kind == "problem" for finding in found))


def to_json(here: Inventory) -> dict[str, Any]:
    """Return the inventory as plain data."""
    return asdict(here) | {"is_jetson": here.is_jetson}


def _facts(here: Inventory) -> list[str]:
    jetpack = (
        f"JetPack {here.jetpack.jetpack}, L4T {here.l4t}" if here.jetpack else here.l4t and f"L4T {here.l4t}"
    )
    tensorrt = here.tensorrt or here.tensorrt_python
    seen = "" if here.tensorrt_python or not tensorrt else " (not in this Python)"
    clocks = {None: None, True: "locked", False: "follow the load"}[here.clocks_locked]
    providers = ", ".join(p.removesuffix("ExecutionProvider") for p in here.providers)
    swap = f"{here.swap / _GB:.1f} GB" + (f", {here.zram / _GB:.1f} of it zram" if here.zram else "")
    dialects = ", dialect primitive alone" if refused_dialect(here) else ""
    rows = {
        "machine": f"{here.model or here.machine}, Python {here.python}"
        + (f", glibc {here.glibc}" if here.glibc else ""),
        "JetPack": jetpack,
        "GPU": f"{here.gpu}, driver {here.driver}" if here.gpu else None,
        "CUDA": here.cuda,
        "CUDA's GPU": here.cuda_gpu or here.cuda_fault,
        "TensorRT": tensorrt and tensorrt + seen,
        "onnxruntime": here.onnxruntime and f"{here.onnxruntime}: {providers}{dialects}",
        "power mode": here.power and f"{here.power.name} ({here.power.id})",
        "clocks": clocks,
        "memory": f"{here.memory_free / _GB:.1f} of {here.memory / _GB:.1f} GB free",
        "swap": swap if here.swap else None,
        "CMA": f"{here.cma >> 20} MiB" if here.cma else None,
        "disk": f"{here.disk_free / _GB:.1f} GB free",
    }
    return [f"{name:<12}{value}" for name, value in rows.items() if value]


def _report(found: list[Finding]) -> list[str]:
    if not found:
        return ["", "nothing is wrong"]
    lines = []
    for finding in found:
        lines += ["", f"{finding.kind}: {finding.what}", f"    {finding.fix}"]
    return lines

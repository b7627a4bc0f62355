"""``foveate doctor``: shows what is on this machine, what is wrong with it, and how to fix it.

Every finding comes with a command that fixes it. A problem keeps something from working, or makes it slow or
run out of memory on a device of this size. Advice is what a careful engineer would do besides. Things that
are in order are not mentioned, and nothing is changed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from foveate.engines.errors import UserError
from foveate.engines.ort import library
from foveate.jetson.device.inventory import Inventory, look
from foveate.jetson.device.system import System
from foveate.runtime.cli import Parser

__all__ = ["Finding", "examine", "main"]

_GB = 1e9
_SMALL = 9 * 2**30  # Jetsons of 8 GB and less
_MIDDLE = 17 * 2**30
_DISK = 5e9  # bytes that a bundle, its engines and wheels need at least
_CMA = 900 << 20  # an 8 GB Orin's builder needs the head's 1.08 GB contiguous; cma=950M helped


@dataclass(frozen=True)
class Finding:
    """One finding: ``what`` is wrong, and the command that fixes it."""

    kind: Literal["problem", "advice"]
    what: str
    fix: str


def examine(here: Inventory, disk: float = _DISK, memory: float = 0) -> list[Finding]:
    """Return the findings, problems first. ``disk`` and ``memory`` are the bytes that must be free."""
    found = [
        *_software(here),
        *(_jetson(here) if here.is_jetson else _desktop(here)),
        *_room(here, disk, memory),
    ]
    return sorted(found, key=lambda finding: finding.kind != "problem")


def _problem(what: str, fix: str) -> Finding:
    return Finding("problem", what, fix)


def _advice(what: str, fix: str) -> Finding:
    return Finding("advice", what, fix)


def _software(here: Inventory) -> Iterator[Finding]:
    rivals = [name for name in here.runtime_packages if name in ("onnxruntime", "onnxruntime-gpu")]
    if len(rivals) == 2:
        yield _problem(
            "onnxruntime and onnxruntime-gpu are both installed; they overwrite each other's files",
            library.INSTALL_CUDA,
        )
    if here.onnxruntime_fault:
        *what, fix = here.onnxruntime_fault.split(" | ")
        yield _problem(", ".join(what), fix)
    elif here.onnxruntime is None:
        broken = bool(here.runtime_packages)
        yield _problem(
            "onnxruntime is installed but cannot be imported" if broken else "onnxruntime is not installed",
            "pip install --force-reinstall onnxruntime" if broken else "pip install onnxruntime",
        )
    elif library.numbers(here.onnxruntime) < library.OLDEST:
        yield _problem(f"ONNX Runtime {here.onnxruntime} is too old", "pip install -U onnxruntime")
    elif (reason := _refused(here)) and library.numbers(here.python) >= (3, 11):
        yield _problem(f"{reason}; only the dialect primitive is used", library.upgrade(here.providers))


def _refused(here: Inventory) -> str | None:
    """Return why the dialect ``ort`` is not used with the installed ONNX Runtime, or None if it is."""
    return library.refused_dialect("ort", here.onnxruntime or "")


def _jetson(here: Inventory) -> Iterator[Finding]:
    if here.jetpack is None:
        yield _problem(
            f"Jetson Linux {here.l4t} is older than JetPack 6.1",
            "flash JetPack 6.2 or 7.2 with NVIDIA SDK Manager",
        )
    if here.cuda is None:
        yield _problem("CUDA is not installed", "sudo apt update && sudo apt install nvidia-jetpack")
    if here.tensorrt is None:
        yield _problem(
            "TensorRT is not installed", "sudo apt update && sudo apt install tensorrt python3-libnvinfer"
        )
    elif here.tensorrt_python is None:
        yield _problem(
            f"TensorRT {here.tensorrt} is installed, but this Python does not see it",
            "sudo apt install python3-libnvinfer && python3 -m venv --system-site-packages ~/foveate",
        )
    yield from _power(here)
    if 0 < here.memory < _SMALL and here.desktop:
        yield _advice(
            "the desktop takes up to 0.9 GB", "sudo systemctl set-default multi-user.target && sudo reboot"
        )
    if 0 < here.memory < _MIDDLE:
        if here.zram:
            yield _advice(
                f"zram swaps {here.zram / _GB:.1f} GB into the memory that models need",
                "sudo systemctl disable --now nvzramconfig && sudo reboot",
            )
        if here.swap <= here.zram:
            yield _advice(
                "there is no swap on the disk",
                "sudo fallocate -l 16G /swapfile && sudo chmod 600 /swapfile "
                "&& sudo mkswap /swapfile && sudo swapon /swapfile",
            )
    if 0 < here.memory < _SMALL and here.cma < _CMA:
        yield _advice(
            f"{here.cma >> 20} MiB of contiguous memory (CMA); TensorRT's builder may ask for more",
            "sudo sed -i '/^ *APPEND/ s/$/ cma=950M/' /boot/extlinux/extlinux.conf && sudo reboot",
        )


def _power(here: Inventory) -> Iterator[Finding]:
    if here.power is None:
        yield _advice("nvpmodel does not tell the power mode", "sudo nvpmodel -q")
    elif not here.power.name.startswith("MAXN"):
        best = [mode for mode in here.power_modes if mode.name.startswith("MAXN")]
        if best:
            mode = max(best, key=lambda m: len(m.name))  # MAXN_SUPER before MAXN
            yield _advice(
                f"the power mode is {here.power.name}; {mode.name} is faster", f"sudo nvpmodel -m {mode.id}"
            )
    if here.clocks_locked is False:
        yield _advice(
            "the clocks follow the load: first tokens come later, timings scatter", "sudo jetson_clocks"
        )


def _desktop(here: Inventory) -> Iterator[Finding]:
    if here.gpu_on_bus and here.driver is None:
        yield _problem("there is an NVIDIA GPU and no driver for it", "sudo apt install nvidia-driver")
    if here.driver and here.onnxruntime and "CUDAExecutionProvider" not in here.providers:
        yield _advice(
            f"onnxruntime {here.onnxruntime} does not use the {here.gpu}",
            library.INSTALL_CUDA,
        )


def _room(here: Inventory, disk: float, memory: float) -> Iterator[Finding]:
    if here.disk_free < disk:
        yield _problem(
            f"{here.disk_free / _GB:.1f} GB of disk are free, {disk / _GB:.1f} GB are needed",
            "sudo apt clean && du -xh --max-depth 2 ~ | sort -h | tail",
        )
    if here.memory_free < memory:
        yield _problem(
            f"{here.memory_free / _GB:.1f} GB of memory are free, {memory / _GB:.1f} GB are needed",
            "sudo sync && sudo sysctl -w vm.drop_caches=3; ps aux --sort -rss | head",
        )


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
        default=_DISK / _GB,
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
    dialects = ", dialect primitive alone" if _refused(here) else ""
    rows = {
        "machine": f"{here.model or here.machine}, Python {here.python}"
        + (f", glibc {here.glibc}" if here.glibc else ""),
        "JetPack": jetpack,
        "GPU": f"{here.gpu}, driver {here.driver}" if here.gpu else None,
        "CUDA": here.cuda,
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
    lines = []
    for finding in found:
        lines += ["", f"{finding.kind}: {finding.what}", f"    {finding.fix}"]
    return lines

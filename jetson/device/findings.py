"""Findings: what is wrong with a machine, and the command that fixes it.

``examine`` reads an ``Inventory`` alone, so it is tested on recorded machines. Each fix is safe to repeat and
lasts over a reboot, or says that it does not. One that needs a network says so.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from foveate.engines.ort import library
from foveate.jetson.device.inventory import Inventory

__all__ = ["DISK", "Finding", "examine", "refused_dialect"]

_GB = 1e9
_SMALL = 9 * 2**30  # Jetsons of 8 GB and less
_MIDDLE = 17 * 2**30
DISK = 5e9  # bytes that a bundle, its engines and wheels need at least
_CMA = 900 << 20  # an 8 GB Orin's builder needs the head's 1.08 GB contiguous; cma=950M helped
_BROKEN_ALLOCATIONS = "36.4.7"  # llama.cpp's discussion 16706 and pull request 23732
_SWAP = 16  # GiB of swap, less where the disk is small
_LEAST_SWAP = 4

_FREE_DISK = "sudo apt clean && du -xh --max-depth 2 ~ | sort -h | tail"
_MAKE_SWAP = (
    "sudo fallocate -l {size}G /swapfile && sudo chmod 600 /swapfile && sudo mkswap /swapfile "
    "&& sudo swapon /swapfile && {{ grep -q '^/swapfile ' /etc/fstab "
    "|| echo '/swapfile none swap sw,nofail 0 0' | sudo tee -a /etc/fstab; }}"
)
_NO_ZRAM = "sudo systemctl disable nvzramconfig && sudo reboot"
_EXTLINUX = "/boot/extlinux/extlinux.conf"
_MORE_CMA = (
    f"{{ [ -e {_EXTLINUX}.before-cma ] || sudo cp {_EXTLINUX} {_EXTLINUX}.before-cma; }} "
    r"&& sudo sed -i -E '/^\s*APPEND/ { s/ cma=[^ ]*//g; s/$/ cma=950M/ }' "
    f"{_EXTLINUX} && sudo reboot"
)


@dataclass(frozen=True)
class Finding:
    """One finding: ``what`` is wrong, and the command that fixes it."""

    kind: Literal["problem", "advice"]
    what: str
    fix: str


def examine(here: Inventory, disk: float = DISK, memory: float = 0) -> list[Finding]:
    """Return the findings, problems first. ``disk`` and ``memory`` are the bytes that must be free."""
    found = [
        *_software(here),
        *(_jetson(here) if here.is_jetson else _desktop(here)),
        *_room(here, disk, memory),
    ]
    return sorted(found, key=lambda finding: finding.kind != "problem")


def _problem(what: str, fix: str) -> Finding:
    return Finding("problem", what, _marked(fix))


def _advice(what: str, fix: str) -> Finding:
    return Finding("advice", what, _marked(fix))


def _marked(fix: str) -> str:
    """Return ``fix`` with a shell comment if it needs a network."""
    return f"{fix}  # needs a network" if re.search(r"\b(apt|pip) (install|update)\b", fix) else fix


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
    elif (reason := refused_dialect(here)) and library.numbers(here.python) >= (3, 11):
        yield _problem(f"{reason}; only the dialect primitive is used", library.upgrade(here.providers))


def refused_dialect(here: Inventory) -> str | None:
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
    yield from _cuda(here)
    yield from _groups(here)
    yield from _power(here)
    yield from _memory(here)


def _cuda(here: Inventory) -> Iterator[Finding]:
    if here.cuda_gpu is None and here.cuda and not (here.missing_groups and here.cuda_fault):
        what, _, fix = (here.cuda_fault or "no GPU can be used: the process that asked CUDA died").partition(
            "; "
        )
        yield _problem(what, fix or "sudo dmesg | grep -iE 'nvgpu|nvmap' | tail; reboot, and ask again")
    if here.l4t == _BROKEN_ALLOCATIONS:
        yield _problem(
            f"L4T {here.l4t} is reported to fail large allocations of CUDA (NvMap error 12); 36.5 is newer",
            "sudo sed -i.bak 's/r36.4/r36.5/' /etc/apt/sources.list.d/nvidia-l4t-apt-source.list "
            "&& sudo apt update && sudo apt dist-upgrade && sudo reboot",
        )


def _groups(here: Inventory) -> Iterator[Finding]:
    if not here.missing_groups:
        return
    missing = " and ".join(here.missing_groups)
    fix = f'sudo usermod -aG {",".join(here.missing_groups)} "$USER"  # then log out and in again'
    if here.cuda_fault:
        what = here.cuda_fault.partition("; ")[0]
        yield _problem(f"{what}; this user is not in the group {missing}", fix)
    else:
        yield _advice(f"this user is not in the group {missing}: cameras or the GPU may be refused", fix)


def _memory(here: Inventory) -> Iterator[Finding]:
    small, middle = 0 < here.memory < _SMALL, 0 < here.memory < _MIDDLE
    if small and here.desktop:
        yield _advice(
            "the desktop takes up to 0.9 GB", "sudo systemctl set-default multi-user.target && sudo reboot"
        )
    if middle:
        yield from _swap(here)
    if small and here.cma < _CMA:
        yield _advice(
            f"{here.cma >> 20} MiB of contiguous memory (CMA); TensorRT's builder may ask for more",
            _MORE_CMA,
        )


def _swap(here: Inventory) -> Iterator[Finding]:
    """Advise swap on the disk in place of zram. The disk's comes first: it takes what zram holds."""
    zram = f"zram swaps {here.zram / _GB:.1f} GB into the memory that models need"
    if here.swap > here.zram:
        if here.zram:
            yield _advice(zram, _NO_ZRAM)
        return
    what = f"{zram}, and there is no swap on the disk" if here.zram else "there is no swap on the disk"
    size = min(_SWAP, int(here.root_free - DISK) >> 30)
    if size < _LEAST_SWAP:
        yield _advice(
            f"{what}, which has no room for it ({here.root_free / _GB:.1f} GB are free)", _FREE_DISK
        )
    else:
        make = _MAKE_SWAP.format(size=size)
        yield _advice(what, f"{make} && {_NO_ZRAM}" if here.zram else make)


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
            "the clocks follow the load: first tokens come later, timings scatter",
            "sudo jetson_clocks  # until the next boot",
        )


def _desktop(here: Inventory) -> Iterator[Finding]:
    if here.gpu_on_bus and here.driver is None:
        yield _problem("there is an NVIDIA GPU and no driver for it", "sudo apt install nvidia-driver")
    if here.driver and here.onnxruntime and "CUDAExecutionProvider" not in here.providers:
        yield _advice(
            f"onnxruntime {here.onnxruntime} does not use the {here.gpu}",
            library.INSTALL_CUDA,
        )
    if here.driver and here.cuda_fault:
        what, _, fix = here.cuda_fault.partition("; ")
        yield _advice(what, fix or "nvidia-smi")


def _room(here: Inventory, disk: float, memory: float) -> Iterator[Finding]:
    if here.disk_free < disk:
        yield _problem(
            f"{here.disk_free / _GB:.1f} GB of disk are free, {disk / _GB:.1f} GB are needed",
            _FREE_DISK,
        )
    if here.memory_free < memory:
        yield _problem(
            f"{here.memory_free / _GB:.1f} GB of memory are free, {memory / _GB:.1f} GB are needed",
            "sudo sync && sudo sysctl -w vm.drop_caches=3; ps aux --sort -rss | head",
        )

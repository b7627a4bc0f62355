"""Inventory of a machine: its hardware, its software and their state.

It covers GPU, driver, CUDA, TensorRT, ONNX Runtime, JetPack, power mode, clocks, memory and disk.
``look`` reads a ``System`` and returns an ``Inventory``, in which None means absent or unknown.
"""

from __future__ import annotations

import json
import platform
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from foveate.jetson.device.devices import JetPack, jetpack_of
from foveate.jetson.device.system import System

__all__ = ["Inventory", "PowerMode", "l4t_of", "look", "power_mode", "power_modes"]

_ONNXRUNTIME = "import json; from foveate.engines.ort.library import probe; print(json.dumps(probe()))"
_CUDA_GPU = (
    "import json; from foveate.engines.trt.cuda.gpu import find_gpu; found = find_gpu(); "
    "print(json.dumps([None, found] if isinstance(found, str) else [found.model, None]))"
)
_GROUPS = ("video", "render")  # whom Jetson Linux lets open the GPU's and the cameras' device files
_TENSORRT = "import tensorrt; print(tensorrt.__version__)"
_PACKAGES = (
    "import json; from importlib.metadata import distributions as d; "
    "print(json.dumps(sorted({x.metadata['Name'] for x in d() "
    "if (x.metadata['Name'] or '').startswith('onnxruntime')})))"
)


@dataclass(frozen=True)
class PowerMode:
    """A power mode of nvpmodel. ``tpc_mask`` says which parts of the GPU it switches off, None if unknown."""

    id: int
    name: str
    tpc_mask: str | None = None


@dataclass(frozen=True)
class Inventory:
    """Facts about a machine.

    Memory and disk are in bytes. ``clocks_locked`` is None without a GPU governor. ``cuda_gpu`` is the GPU
    that CUDA was seen to reach, and ``cuda_fault`` the reason why it reaches none. ``missing_groups`` are
    those of "video" and "render" that exist and do not have this user. ``disk_free`` is of the disk for
    bundles, ``root_free`` of the root's.
    """

    machine: str
    python: str
    glibc: str | None = None
    model: str | None = None
    l4t: str | None = None
    jetpack: JetPack | None = None
    gpu: str | None = None
    gpu_on_bus: bool = False
    driver: str | None = None
    cuda: str | None = None
    cuda_gpu: str | None = None
    cuda_fault: str | None = None
    missing_groups: list[str] = field(default_factory=list)
    tensorrt: str | None = None
    tensorrt_python: str | None = None
    onnxruntime: str | None = None
    onnxruntime_fault: str | None = None
    providers: list[str] = field(default_factory=list)
    runtime_packages: list[str] = field(default_factory=list)
    power: PowerMode | None = None
    power_modes: list[PowerMode] = field(default_factory=list)
    clocks_locked: bool | None = None
    desktop: bool = False
    memory: int = 0
    memory_free: int = 0
    swap: int = 0
    zram: int = 0
    cma: int = 0
    disk_free: int = 0
    root_free: int = 0

    @property
    def is_jetson(self) -> bool:
        """True if Jetson Linux is installed."""
        return self.l4t is not None


def look(system: System, disk: Path) -> Inventory:
    """Return the inventory. ``disk`` is the folder for bundles, whose disk is measured."""
    l4t, info = l4t_of(system.read("/etc/nv_tegra_release")), _meminfo(system)
    smi = _smi(system)
    version, providers, fault = _json(_python(system, _ONNXRUNTIME)) or (None, [], None)
    cuda_gpu, cuda_fault = _json(_python(system, _CUDA_GPU)) or (None, None)
    target = system.root / "etc/systemd/system/default.target"
    return Inventory(
        machine=platform.machine(),
        python=system.python,
        glibc=platform.libc_ver()[1] or None,
        model=system.read("/proc/device-tree/model"),
        l4t=l4t,
        jetpack=jetpack_of(l4t) if l4t else None,
        gpu=smi[0] if smi else None,
        gpu_on_bus=_on_bus(system),
        driver=smi[1] if smi else None,
        cuda=_cuda(system),
        cuda_gpu=cuda_gpu,
        cuda_fault=cuda_fault,
        missing_groups=_missing_groups(system),
        tensorrt=_library_version(system, "libnvinfer.so"),
        tensorrt_python=_line(_python(system, _TENSORRT)),
        onnxruntime=version,
        onnxruntime_fault=fault,
        providers=providers,
        runtime_packages=_json(_python(system, _PACKAGES)) or [],
        power=power_mode(system),
        power_modes=power_modes(system),
        clocks_locked=_locked(system),
        desktop=target.is_symlink() and target.readlink().name == "graphical.target",
        memory=info.get("MemTotal", 0),
        memory_free=info.get("MemAvailable", 0),
        swap=info.get("SwapTotal", 0),
        zram=_zram(system),
        cma=info.get("CmaTotal", 0),
        disk_free=system.free(disk),
        root_free=system.free(system.root),
    )


def _python(system: System, code: str) -> str | None:
    """Return what ``code`` prints in a new Python with this one's module path."""
    return system.run(sys.executable, "-c", f"import sys; sys.path[:] = {sys.path!r}; {code}")


def power_mode(system: System) -> PowerMode | None:
    """Return the current power mode, or None.

    ``nvpmodel -q`` prints "NV Power Mode: 15W" and, on the next line, the mode's number.
    """
    text = system.run("nvpmodel", "-q") or ""
    found = re.search(r"NV Power Mode:\s*(\S+)\s+(\d+)", text)
    return PowerMode(int(found[2]), found[1]) if found else None


def power_modes(system: System) -> list[PowerMode]:
    """Return the power modes in ``/etc/nvpmodel.conf``.

    Each begins with a line such as ``< POWER_MODEL ID=0 NAME=MAXN >``, and may have one such as
    ``TPC_POWER_GATING TPC_PG_MASK 240`` below it.
    """
    text = system.read("/etc/nvpmodel.conf") or ""
    found = re.findall(r"^\s*<\s*POWER_MODEL\s+ID=(\d+)\s+NAME=(\S+?)\s*>([^<]*)", text, re.MULTILINE)
    return [PowerMode(int(number), name, _tpc_mask(rows)) for number, name, rows in found]


def _tpc_mask(rows: str) -> str | None:
    found = re.search(r"^\s*TPC_POWER_GATING\s+TPC_PG_MASK\s+(\S+)", rows, re.MULTILINE)
    return found[1] if found else None


def l4t_of(release: str | None) -> str | None:
    """Return the L4T version in the text of ``/etc/nv_tegra_release``, or None if this is no Jetson.

    "# R36 (release), REVISION: 4.3, GCID: ..." is 36.4.3.
    """
    found = re.match(r"#\s*R(\d+)\s*\(release\),\s*REVISION:\s*([\d.]+)", release or "")
    return f"{found[1]}.{found[2]}" if found else None


def _smi(system: System) -> tuple[str, str] | None:
    text = system.run("nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader")
    name, _, driver = (text or "").partition("\n")[0].partition(",")
    return (name.strip(), driver.strip()) if driver else None


def _on_bus(system: System) -> bool:
    """Return True if there is an NVIDIA display controller, with or without a driver."""
    for device in system.glob("/sys/bus/pci/devices/*"):
        where = f"/sys/bus/pci/devices/{device.name}"
        if system.read(f"{where}/vendor") == "0x10de" and (system.read(f"{where}/class") or "")[:4] == "0x03":
            return True
    return False


def _cuda(system: System) -> str | None:
    try:
        return json.loads(system.read("/usr/local/cuda/version.json") or "")["cuda"]["version"]
    except (ValueError, KeyError, TypeError):
        found = re.search(r"release ([\d.]+)", system.run("nvcc", "--version") or "")
        return found[1] if found else None


def _missing_groups(system: System) -> list[str]:
    """Return the groups that this user should be in and is not. Root needs none."""
    mine = system.run("id", "-nG")
    if mine is None or (system.run("id", "-u") or "").strip() == "0":
        return []
    there = re.findall(r"^(\w[^:\n]*):", system.read("/etc/group") or "", re.MULTILINE)
    return [group for group in _GROUPS if group in there and group not in mine.split()]


def _library_version(system: System, name: str) -> str | None:
    """Return the longest version in the file names of a shared library, or None."""
    found = [p.name for p in system.glob(f"/usr/lib/*-linux-gnu/{name}.*")]
    versions = [n[len(name) + 1 :] for n in found if re.fullmatch(r"[\d.]+", n[len(name) + 1 :])]
    return max(versions, key=len, default=None)


def _locked(system: System) -> bool | None:
    """Return True if the GPU's minimum and maximum frequency are equal, as ``jetson_clocks`` sets them."""
    for folder in system.glob("/sys/class/devfreq/*"):
        if re.search(r"gpu|ga10b|gv11b", folder.name):
            least, most = (system.read(f"/sys/class/devfreq/{folder.name}/{e}_freq") for e in ("min", "max"))
            return None if least is None or most is None else least == most
    return None


def _meminfo(system: System) -> dict[str, int]:
    found = re.findall(r"^(\w+):\s+(\d+) kB", system.read("/proc/meminfo") or "", re.MULTILINE)
    return {name: int(kib) * 1024 for name, kib in found}


def _zram(system: System) -> int:
    lines = (system.read("/proc/swaps") or "").splitlines()
    return sum(int(line.split()[2]) * 1024 for line in lines if line.startswith("/dev/zram"))


def _json(text: str | None) -> Any:  # JSON may be anything
    try:
        return json.loads(text or "null")
    except ValueError:
        return None


def _line(text: str | None) -> str | None:
    return (text or "").strip() or None

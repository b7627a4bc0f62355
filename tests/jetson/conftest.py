"""Recorded machines: file trees and what commands print, in the published formats.

* ``/etc/nv_tegra_release``: as boards of JetPack 6.2 (R36.4.3) and 7.2.1 (R39.2.1) show it in public notes.
* ``nvpmodel -q``: "NV Power Mode: NAME" and the number on the next line, after a warning on some boards
  (jetson_stats' emulator).
* ``/etc/nvpmodel.conf``: the file's own header, NVIDIA's skill jetson-customize-nvpmodel; modes of an Orin
  Nano Super.
* ``nvidia-smi`` on the nvgpu stack names "<model> (nvgpu)": NVIDIA's skill jetson-diagnostic; driver 540.4.0
  as recorded there.
* INA3221: Linux' Documentation/hwmon/ina3221.rst (mV, mA; in7 is the sum of the shunts); labels from the
  device tree of Orin NX and Nano (VDD_IN, VDD_CPU_GPU_CV, VDD_SOC) and, AGX Orin, from a tegrastats line of
  JetPack 7.2.
* ``/etc/group``, ``id -nG``: group(5), id(1).
* ``/proc/meminfo``, ``/proc/swaps``: proc(5); their numbers are ours.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from bundle_by_hand import make_bundle  # noqa: F401

from foveate.jetson.device.system import System

RELEASE_6 = (
    "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64, "
    "DATE: Wed Jan  8 01:49:37 UTC 2025\n"
    "# KERNEL_VARIANT: oot\nTARGET_USERSPACE_LIB_DIR=nvidia\n"
    "TARGET_USERSPACE_LIB_DIR_PATH=usr/lib/aarch64-linux-gnu/nvidia\n"
)
RELEASE_7 = RELEASE_6.replace("R36", "R39").replace("4.3,", "2.1,").replace("38968081", "46758480")
MODES = """\
# nvpmodel.conf
< PARAM TYPE=FILE NAME=CPU_ONLINE >
CORE_0 /sys/devices/system/cpu/cpu0/online

< POWER_MODEL ID=0 NAME=15W >
CPU_ONLINE CORE_0 1
< POWER_MODEL ID=1 NAME=25W >
CPU_ONLINE CORE_0 1
< POWER_MODEL ID=2 NAME=MAXN_SUPER >
CPU_ONLINE CORE_0 1
< PM_CONFIG DEFAULT=1 >
"""
MEMINFO = (
    "MemTotal: {total} kB\nMemFree: 1000 kB\nMemAvailable: {free} kB\n"
    "SwapTotal: {swap} kB\nCmaTotal: {cma} kB\n"
)
GPU = "/sys/class/devfreq/17000000.gpu"

Files = dict[str, str]
Outputs = dict[str, str]


def rails(folder: str, labels: list[str], values: list[tuple[int, int]]) -> Files:
    """Files of an INA3221: mV and mA by channel, and the sum of the shunts, which is no rail."""
    files = {
        f"{folder}/name": "ina3221\n",
        f"{folder}/in7_label": "sum of shunt voltages\n",
        f"{folder}/in7_input": "9\n",
    }
    for number, (label, (volt, current)) in enumerate(zip(labels, values, strict=True), 1):
        files[f"{folder}/in{number}_label"] = f"{label}\n"
        files[f"{folder}/in{number}_input"] = f"{volt}\n"
        files[f"{folder}/curr{number}_input"] = f"{current}\n"
    return files


def nano() -> tuple[Files, Outputs]:
    """An Orin Nano 8GB as it comes: 15 W, desktop, zram, no swap, little CMA."""
    files = {
        "/etc/nv_tegra_release": RELEASE_6,
        "/proc/device-tree/model": "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super\0",
        "/usr/local/cuda/version.json": json.dumps({"cuda": {"name": "CUDA SDK", "version": "12.6.11"}}),
        "/usr/lib/aarch64-linux-gnu/libnvinfer.so.10": "",
        "/usr/lib/aarch64-linux-gnu/libnvinfer.so.10.3.0": "",
        "/etc/nvpmodel.conf": MODES,
        "/etc/group": "root:x:0:\nvideo:x:44:jetson\nrender:x:104:jetson\njetson:x:1000:\n",
        f"{GPU}/min_freq": "306000000\n",
        f"{GPU}/max_freq": "624750000\n",
        "/proc/meminfo": MEMINFO.format(total=7803200, free=5200000, swap=3901600, cma=262144),
        "/proc/swaps": (
            "Filename Type Size Used Priority\n/dev/zram0 partition 1950800 0 5\n"
            "/dev/zram1 partition 1950800 0 5\n"
        ),
        **rails(
            "/sys/class/hwmon/hwmon1",
            ["VDD_IN", "VDD_CPU_GPU_CV", "VDD_SOC"],
            [(5000, 1200), (4992, 200), (4992, 300)],
        ),
    }
    outputs = {
        "nvpmodel -q": "NVPM WARN: fan mode is not set!\nNV Power Mode: 15W\n0\n",
        "nvidia-smi": "Orin (nvgpu), 540.4.0\n",
        "ort.library": '["1.23.2", ["CPUExecutionProvider"], null]\n',
        "import tensorrt": "10.3.0\n",
        "find_gpu": '["Orin, 8 GiB", null]\n',
        "id -nG": "jetson adm sudo video render\n",
        "id -u": "1000\n",
        "distributions": '["onnxruntime"]\n',
    }
    return files, outputs


def agx() -> tuple[Files, Outputs]:
    """An AGX Orin 64GB with JetPack 7.2.1 on which all is well."""
    files, outputs = nano()
    files |= {
        "/etc/nv_tegra_release": RELEASE_7,
        "/proc/device-tree/model": "NVIDIA Jetson AGX Orin Developer Kit\0",
        "/etc/nvpmodel.conf": "< POWER_MODEL ID=0 NAME=MAXN >\n< POWER_MODEL ID=1 NAME=MODE_15W >\n",
        "/usr/lib/aarch64-linux-gnu/libnvinfer.so.10.16.2": "",
        f"{GPU}/min_freq": "1300500000\n",
        f"{GPU}/max_freq": "1300500000\n",
        "/proc/meminfo": MEMINFO.format(total=64324608, free=60000000, swap=0, cma=262144),
        "/proc/swaps": "Filename Type Size Used Priority\n",
    }
    del files["/usr/lib/aarch64-linux-gnu/libnvinfer.so.10.3.0"]
    for name in [n for n in files if "hwmon" in n]:
        del files[name]
    files |= rails(
        "/sys/class/hwmon/hwmon3",
        ["VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"],
        [(19824, 259), (19824, 165), (5000, 1100)],
    )
    files |= rails("/sys/class/hwmon/hwmon4", ["NC", "VDDQ_VDD2_1V8AO", "NC"], [(0, 0), (4992, 400), (0, 0)])
    outputs |= {"nvpmodel -q": "NV Power Mode: MAXN\n0\n", "import tensorrt": "10.16.2.10\n"}
    outputs["ort.library"] = '["1.32.0", ["CPUExecutionProvider"], null]\n'
    return files, outputs


@pytest.fixture
def recorded(tmp_path: Path) -> Callable[..., System]:
    """``recorded("nano", files={...}, outputs={...}, links={...}, free=...)``: a System.

    A value None takes a file or an output away.
    """

    def make(name: str = "", files=None, outputs=None, links=None, free: int = 50 * 10**9) -> System:
        all_files, all_outputs = {"nano": nano, "agx": agx, "": lambda: ({}, {})}[name]()
        all_files |= files or {}
        all_outputs |= outputs or {}
        for path, text in all_files.items():
            if text is not None:
                file = tmp_path / path.lstrip("/")
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(text)
        for path, target in (links or {}).items():
            file = tmp_path / path.lstrip("/")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.symlink_to(target)

        def run(*command: str) -> str | None:
            line = " ".join(command)
            return next((text for key, text in all_outputs.items() if key in line), None)

        return System(tmp_path, run, lambda path: free, "3.10.12" if name == "nano" else "3.12.3")

    return make

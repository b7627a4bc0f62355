"""Print the target that the GPU of this machine can run, and what pip has to install for it, on one line.

An example is ``tensorrt-rtx tensorrt-rtx-cu13 cuda-bindings>=13,<13.1``. ``scripts/gpu_check.sh`` reads it.
A target that is given as argument is kept.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys

from foveate.engines.trt.cuda.gpu import driver
from foveate.engines.trt.cuda.requirement import requirement

RTX = (75, 80, 86, 89, 120, 121)
"""Compute capabilities of TensorRT for RTX 1.7. SM87 (Orin), 90, 100 and 110 (Thor) are not among them."""


def choose(sm: int | None, cuda: str | None, installed: bool, asked: str = "") -> list[str]:
    """Return the target, and pip's requirements for it.

    ``sm`` is the compute capability (87 is 8.7), None if nothing tells it, as on a Jetson. ``cuda`` is the
    driver's version of CUDA, None without a driver. ``installed`` says that TensorRT is here already.
    """
    bindings = [requirement(cuda)] if cuda else []
    major = int(cuda.split(".")[0]) if cuda else 13
    target = asked or ("tensorrt-rtx" if not installed and (sm is None or sm in RTX) else "tensorrt")
    if target == "tensorrt-rtx":
        return [target, f"tensorrt-rtx-cu{major}", *bindings]
    return [target, *([] if installed else [f"tensorrt-cu{major}"]), *bindings]


def _capability() -> int | None:
    command = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
        return int(said[0].replace(".", ""))
    except (OSError, subprocess.CalledProcessError, IndexError, ValueError):  # no nvidia-smi, or an old one
        return None


if __name__ == "__main__":
    here = importlib.util.find_spec("tensorrt") is not None
    print(*choose(_capability(), driver(), here, *sys.argv[1:]))

"""The Python package with CUDA's bindings for a driver. Everything that installs them asks here.

The package links its own CUDA runtime, which must not be newer than the driver. Otherwise every call answers
with error 35, "CUDA driver version is insufficient for CUDA runtime version".
"""

from __future__ import annotations

__all__ = ["PACKAGES", "requirement"]

PACKAGES = ("cuda-bindings", "cuda-python")
"""Names of the packages, as they have been called from CUDA 12.8 on and before."""


def requirement(cuda: str) -> str:
    """Return pip's requirement for a driver of CUDA ``cuda``, e.g. "12.6" or "13.2.1".

    ``cuda`` is what ``nvidia-smi`` calls the CUDA version. The newest package that is not newer is taken.
    """
    major, minor = (int(part) for part in cuda.split(".")[:2])
    name = PACKAGES[0] if (major, minor) >= (12, 8) else PACKAGES[1]
    return f"{name}>={major},<{major}.{minor + 1}"

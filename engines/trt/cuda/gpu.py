"""The GPU of this machine, and the library that CUDA is called through."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from foveate.engines.trt.cuda import libcudart
from foveate.engines.trt.cuda.requirement import requirement

__all__ = ["Gpu", "available_memory", "check", "driver", "find_gpu", "runtime"]

_CLASS = 4  # GiB: what firmware and driver take away differs by less than this
_INSUFFICIENT_DRIVER = 35  # the CUDA runtime is newer than the driver


@dataclass(frozen=True)
class Gpu:
    """A GPU: its name, its compute capability (87 is 8.7), and its memory in bytes.

    ``integrated`` is true if its memory is the machine's, as on a Jetson.
    """

    name: str
    sm: int
    memory: int
    integrated: bool = False

    @property
    def model(self) -> str:
        """Name and memory, rounded up to 4 GiB, e.g. "Orin, 8 GiB".

        Every Orin calls itself "Orin"; the memory tells an AGX Orin from an Orin NX and an Orin Nano. The
        number of multiprocessors does not serve, since it depends on the power mode.
        """
        return f"{self.name}, {-(-self.memory // (_CLASS << 30)) * _CLASS} GiB"


@cache
def find_gpu() -> Gpu | str:
    """Return the first GPU, or the reason why none can be used."""
    cuda = _search()
    if isinstance(cuda, str):
        return f"no GPU can be used: {cuda}"
    found = check(cuda, cuda.cudaGetDeviceProperties(0))
    sm = found.major * 10 + found.minor
    return Gpu(found.name.decode(), sm, found.totalGlobalMem, bool(found.integrated))


def runtime() -> Any:
    """Return the library that CUDA is called through: cuda-python, or the system's libcudart.

    Raises RuntimeError if ``find_gpu`` finds none.
    """
    cuda = _search()
    if isinstance(cuda, str):
        raise RuntimeError(cuda)  # noqa: TRY004, no type is wrong
    return cuda


@cache
def _search() -> Any:
    """Return a library that sees a GPU, or the reason why there is none.

    cuda-python comes first. If it is missing or newer than the driver, the system's libraries are tried.
    """
    bindings = _cuda_python()
    for cuda in (*filter(None, [bindings]), *libcudart.found()):
        status, count = cuda.cudaGetDeviceCount()
        if not int(status) and count:
            return cuda
    return _reason(bindings)


def _reason(bindings: Any) -> str:
    """Return why no GPU is seen through ``bindings``, cuda-python's or None, nor through the system's."""
    version = driver()
    if version is None:
        return "no driver of NVIDIA is installed"
    if bindings is None:
        return f"neither cuda-bindings nor libcudart is installed; pip install '{requirement(version)}'"
    status, _ = bindings.cudaGetDeviceCount()
    if int(status) == _INSUFFICIENT_DRIVER:
        made_for = _version(bindings.cudaRuntimeGetVersion()[1])
        return (
            f"cuda-bindings is for CUDA {made_for}, the driver for {version}; "
            f"pip install '{requirement(version)}', or a newer driver"
        )
    return bindings.cudaGetErrorString(status)[1].decode() if int(status) else "the driver knows none"


def _cuda_python() -> Any:
    try:
        from cuda.bindings import runtime as found
    except ImportError:
        try:
            from cuda import cudart as found  # cuda-python before 12.8
        except ImportError:  # not installed, or for another Python
            return None
    return found


def driver() -> str | None:
    """Return the newest CUDA version that the driver takes, e.g. "12.6", or None if there is no driver."""
    version = ctypes.c_int()
    try:
        status = ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(version))
    except (OSError, AttributeError):
        return None
    return None if status or not version.value else _version(version.value)


def _version(number: int) -> str:
    return f"{number // 1000}.{number % 1000 // 10}"


def check(cuda: Any, answer: tuple[Any, ...]) -> Any:
    """Return the values behind the status in a result of CUDA. Raises MemoryError or RuntimeError."""
    status, *values = answer
    if int(status) == int(cuda.cudaError_t.cudaErrorMemoryAllocation):
        raise MemoryError("no memory on the GPU")
    if int(status):
        raise RuntimeError(f"CUDA: {cuda.cudaGetErrorString(status)[1].decode()}")
    return values[0] if len(values) == 1 else tuple(values)


def available_memory(gpu: Gpu, free: int, meminfo: Path = Path("/proc/meminfo")) -> int:
    """Return the bytes that a program can get on ``gpu``, whose driver says that ``free`` are free.

    On an integrated GPU the driver counts only unused memory. The page cache comes on top, since the kernel
    gives it back on demand: MemAvailable counts it.
    """
    if not gpu.integrated:
        return free
    try:
        lines = meminfo.read_text(encoding="ascii").splitlines()
    except OSError:
        return free
    return max([free, *(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:"))])

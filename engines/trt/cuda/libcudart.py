"""The CUDA runtime of the system, called through ctypes.

Stands in for cuda-python where it has no wheel for the driver or for this Python. A Jetson has the library
from JetPack, and TensorRT's own wheels bring it along. Functions take and return what cuda-python's do.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import enum
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

__all__ = ["SystemRuntime", "found"]

_HANDLE, _ADDRESS, _SIZE, _INT = ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int


class _Out:
    """A parameter that the function writes its result to."""

    def __init__(self, kind: Any) -> None:
        self.kind = kind


# Function -> its parameters, from cuda_runtime_api.h. They are equal in CUDA 11.4 to 13.
_PARAMETERS: dict[str, tuple[Any, ...]] = {
    "cudaDriverGetVersion": (_Out(_INT),),
    "cudaRuntimeGetVersion": (_Out(_INT),),
    "cudaGetDeviceCount": (_Out(_INT),),
    "cudaDeviceGetAttribute": (_Out(_INT), _INT, _INT),
    "cudaMemGetInfo": (_Out(_SIZE), _Out(_SIZE)),
    "cudaGetLastError": (),
    "cudaMalloc": (_Out(_ADDRESS), _SIZE),
    "cudaFree": (_ADDRESS,),
    "cudaMemsetAsync": (_ADDRESS, _INT, _SIZE, _HANDLE),
    "cudaMemcpyAsync": (_ADDRESS, _ADDRESS, _SIZE, _INT, _HANDLE),
    "cudaMemcpy2DAsync": (_ADDRESS, _SIZE, _ADDRESS, _SIZE, _SIZE, _SIZE, _INT, _HANDLE),
    "cudaStreamCreate": (_Out(_HANDLE),),
    "cudaStreamSynchronize": (_HANDLE,),
    "cudaStreamBeginCapture": (_HANDLE, _INT),
    "cudaStreamEndCapture": (_HANDLE, _Out(_HANDLE)),
    "cudaGraphInstantiateWithFlags": (_Out(_HANDLE), _HANDLE, ctypes.c_ulonglong),
    "cudaGraphLaunch": (_HANDLE, _HANDLE),
    "cudaGraphDestroy": (_HANDLE,),
    "cudaGraphExecDestroy": (_HANDLE,),
}
# cudaDeviceAttr
_INTEGRATED, _MAJOR, _MINOR = 18, 75, 76
# cudaDeviceProp begins equally in all versions: char name[256], char[16], char[8], int, size_t totalGlobalMem
_NAME, _TOTAL, _PROPERTIES = 256, 288, 8192


class _Error(enum.IntEnum):
    cudaErrorMemoryAllocation = 2  # noqa: N815, CUDA's names
    cudaErrorInsufficientDriver = 35  # noqa: N815


class _Copy(enum.IntEnum):
    cudaMemcpyHostToDevice = 1  # noqa: N815
    cudaMemcpyDeviceToHost = 2  # noqa: N815
    cudaMemcpyDeviceToDevice = 3  # noqa: N815


class _Capture(enum.IntEnum):
    cudaStreamCaptureModeThreadLocal = 1  # noqa: N815


class SystemRuntime:
    """The functions of cuda-python's ``runtime`` that we call, over a loaded libcudart.

    Each returns its status and its results as one tuple. Handles and addresses are ``int``.
    """

    cudaError_t = _Error  # noqa: N815
    cudaMemcpyKind = _Copy  # noqa: N815
    cudaStreamCaptureMode = _Capture  # noqa: N815

    def __init__(self, library: Any) -> None:
        self._library = library

    def __getattr__(self, name: str) -> Callable[..., tuple[Any, ...]]:
        if name not in _PARAMETERS:
            raise AttributeError(name)
        found = self._bound(name, _PARAMETERS[name])
        setattr(self, name, found)
        return found

    def _bound(self, name: str, parameters: tuple[Any, ...]) -> Callable[..., tuple[Any, ...]]:
        function = getattr(self._library, name)
        function.restype = _INT
        function.argtypes = [
            ctypes.POINTER(each.kind) if isinstance(each, _Out) else each for each in parameters
        ]

        def call(*arguments: Any) -> tuple[Any, ...]:
            given, results, passed = iter(arguments), [], []
            for each in parameters:
                if isinstance(each, _Out):
                    results.append(each.kind())
                    passed.append(ctypes.byref(results[-1]))
                else:
                    passed.append(each(next(given)))
            status = function(*passed)
            return status, *(result.value or 0 for result in results)

        return call

    def cudaGetErrorString(self, status: int) -> tuple[int, bytes]:  # noqa: N802
        """Return 0 and the text of an error."""
        function = self._library.cudaGetErrorString
        function.restype, function.argtypes = ctypes.c_char_p, [_INT]
        return 0, function(int(status)) or b"unknown error"

    def cudaGetDeviceProperties(self, number: int) -> tuple[Any, ...]:  # noqa: N802
        """Return the status, and the properties that we read of a device."""
        raw = ctypes.create_string_buffer(_PROPERTIES)
        function = self._library.cudaGetDeviceProperties
        function.restype, function.argtypes = _INT, [ctypes.c_void_p, _INT]
        if status := function(raw, number):
            return status, None
        facts: dict[str, Any] = {
            "name": raw.raw[:_NAME].partition(b"\0")[0],
            "totalGlobalMem": ctypes.c_size_t.from_buffer(raw, _TOTAL).value,
        }
        for key, attribute in (("integrated", _INTEGRATED), ("major", _MAJOR), ("minor", _MINOR)):
            status, facts[key] = self.cudaDeviceGetAttribute(attribute, number)
            if status:
                return status, None
        return 0, SimpleNamespace(**facts)


def found() -> Iterator[SystemRuntime]:
    """Yield every CUDA runtime library of this machine, newest major version first."""
    seen = set()
    for name in _names():
        try:
            library = ctypes.CDLL(name)
        except OSError:
            continue
        if library._handle not in seen:  # two names of one library
            seen.add(library._handle)
            yield SystemRuntime(library)


def _names() -> Iterator[str]:
    versions = (13, 12)
    yield from (f"libcudart.so.{version}" for version in versions)
    if known := ctypes.util.find_library("cudart"):
        yield known
    yield from (f"/usr/local/cuda/lib64/libcudart.so.{version}" for version in versions)
    for folder in map(Path, filter(None, sys.path)):  # NVIDIA's wheels, such as those of TensorRT
        yield from map(str, sorted(folder.glob("nvidia/*/lib/libcudart.so.*"), reverse=True))

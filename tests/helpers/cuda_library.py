"""A libcudart in C calling convention, whose functions are those of a double in Python."""

from __future__ import annotations

import ctypes
from typing import Any

from foveate.engines.trt.cuda.libcudart import _PARAMETERS, _Out


class CudaLibrary:
    """Stands in for ``ctypes.CDLL("libcudart.so")``. ``cuda`` has cuda-python's functions."""

    def __init__(self, cuda: Any) -> None:
        self._cuda = cuda
        for name, parameters in _PARAMETERS.items():
            self._export(name, parameters)
        properties = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_int)(self._properties)
        text = ctypes.CFUNCTYPE(ctypes.c_char_p, ctypes.c_int)(
            lambda status: cuda.cudaGetErrorString(status)[1]
        )
        self.cudaGetDeviceProperties, self.cudaGetErrorString = properties, text

    def _export(self, name: str, parameters: tuple[Any, ...]) -> None:
        kinds = [ctypes.c_void_p if isinstance(each, _Out) else each for each in parameters]

        def function(*arguments: Any) -> int:
            pairs = list(zip(parameters, arguments, strict=True))
            given = [value or 0 for each, value in pairs if not isinstance(each, _Out)]
            status, *results = getattr(self._cuda, name)(*given)
            places = [(each.kind, value) for each, value in pairs if isinstance(each, _Out)]
            for (kind, place), result in zip(places, results, strict=False) if not int(status) else ():
                kind.from_address(place).value = result
            return int(status)

        setattr(self, name, ctypes.CFUNCTYPE(ctypes.c_int, *kinds)(function))

    def _properties(self, place: int, number: int) -> int:
        status, found = self._cuda.cudaGetDeviceProperties(number)
        if not int(status):
            ctypes.memmove(place, found.name, len(found.name))
            ctypes.c_size_t.from_address(place + 288).value = found.totalGlobalMem
        return int(status)

    def _text(self, status: int) -> int:
        self._said = ctypes.create_string_buffer(self._cuda.cudaGetErrorString(status)[1])
        return ctypes.addressof(self._said)

"""The module ``tensorrt``: enumerations, classes, and faults."""

from __future__ import annotations

import enum
from typing import Any

from cuda_double import Cuda

from tensorrt_double import builder, runtime


class _Severity(enum.IntEnum):
    INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)


class ILogger:
    Severity = _Severity

    def __init__(self) -> None:
        self.made = True


class Logger(ILogger):
    INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = _Severity

    def __init__(self, least: int = _Severity.WARNING) -> None:
        super().__init__()
        self.least = least

    def log(self, severity: int, message: str) -> None:
        """Forget the message."""


class IProgressMonitor:
    def __init__(self) -> None:
        self.made = True


class IStreamWriter:
    def __init__(self) -> None:
        self.made = True


class DataType(enum.Enum):
    FLOAT, HALF, INT8, INT32, BOOL, INT64 = range(6)


class Binding:
    """The module over one ``cuda``. ``rtx`` makes it ``tensorrt_rtx``.

    ``faults``: name of a method -> what its next call returns without doing anything, or an exception that it
    raises. ``loggers`` and ``runtimes`` hold what was made.
    """

    ILogger, Logger, IProgressMonitor, IStreamWriter = ILogger, Logger, IProgressMonitor, IStreamWriter
    DataType = DataType
    ExecutionContextAllocationStrategy = enum.Enum(
        "ExecutionContextAllocationStrategy", "STATIC USER_MANAGED"
    )
    TensorLocation = enum.Enum("TensorLocation", "DEVICE HOST")
    TensorIOMode = enum.Enum("TensorIOMode", "NONE INPUT OUTPUT")
    NetworkDefinitionCreationFlag = enum.IntEnum("NetworkDefinitionCreationFlag", "STRONGLY_TYPED", start=1)
    ProfilingVerbosity = enum.Enum("ProfilingVerbosity", "LAYER_NAMES_ONLY DETAILED")
    BuilderFlag = enum.Enum("BuilderFlag", "VERSION_COMPATIBLE")
    HardwareCompatibilityLevel = enum.Enum("HardwareCompatibilityLevel", "NONE AMPERE_PLUS")
    MemoryPoolType = enum.Enum("MemoryPoolType", "WORKSPACE")
    LayerInformationFormat = enum.Enum("LayerInformationFormat", "JSON")
    TopKOperation = enum.Enum("TopKOperation", "MAX")

    def __init__(self, cuda: Cuda, version: str = "10.16.1.11", rtx: bool = False) -> None:
        self.cuda, self.__version__, self.rtx = cuda, version, rtx
        self.__name__ = "tensorrt_rtx" if rtx else "tensorrt"
        if rtx:
            self.CudaGraphStrategy = enum.Enum("CudaGraphStrategy", "DISABLED WHOLE_GRAPH_CAPTURE")
        self.faults: dict[str, Any] = {}
        self.loggers: list[Any] = []
        self.runtimes: list[runtime.Runtime] = []
        self.refuses = "^$"  # operators that the builder refuses, a regular expression

    def faulty(self, name: str) -> bool:
        """True if a fault waits for ``name``. Raises it if it is an exception."""
        if isinstance(self.faults.get(name), BaseException):
            raise self.faults.pop(name)
        return name in self.faults

    def Builder(self, log: Any) -> builder.Builder:  # noqa: N802
        self._know(log)
        if self.faulty("Builder"):  # how pybind11 tells a null pointer
            raise TypeError("pybind11::init(): factory function returned nullptr")
        return builder.Builder(self, log)

    def OnnxParser(self, network: builder.Network, log: Any) -> builder.OnnxParser:  # noqa: N802
        self._know(log)
        return builder.OnnxParser(self, network, log)

    def Runtime(self, log: Any) -> runtime.Runtime:  # noqa: N802
        self._know(log)
        if self.faulty("Runtime"):
            raise TypeError("pybind11::init(): factory function returned nullptr")
        self.runtimes.append(runtime.Runtime(self, log))
        return self.runtimes[-1]

    def _know(self, log: Any) -> None:
        assert isinstance(log, ILogger) and log.made, "a logger whose base class was not initialized"
        if not any(log is each for each in self.loggers):
            self.loggers.append(log)

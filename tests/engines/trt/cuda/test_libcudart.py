"""The CUDA runtime through ctypes: values cross into C and back, in cuda-python's form."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest
from cuda_double import NO_MEMORY, Cuda
from cuda_library import CudaLibrary

from foveate.engines.trt.cuda import libcudart
from foveate.engines.trt.cuda.libcudart import SystemRuntime


@pytest.fixture
def cuda() -> Cuda:
    return Cuda(size=1 << 20)


@pytest.fixture
def runtime(cuda: Cuda) -> SystemRuntime:
    return SystemRuntime(CudaLibrary(cuda))


def test_memory_copies_and_the_stream(runtime: SystemRuntime) -> None:
    assert runtime.cudaMemGetInfo() == (0, 1 << 20, 1 << 20)
    (_, stream), (_, address) = runtime.cudaStreamCreate(), runtime.cudaMalloc(24)
    given, got = np.arange(6, dtype="float32"), np.zeros(6, "float32")
    kinds = runtime.cudaMemcpyKind
    down, up = kinds.cudaMemcpyDeviceToHost, kinds.cudaMemcpyHostToDevice
    assert runtime.cudaMemcpyAsync(address, given.ctypes.data, 24, up, stream) == (0,)
    assert runtime.cudaMemsetAsync(address, 0, 4, stream) == (0,)
    assert runtime.cudaMemcpy2DAsync(got.ctypes.data, 12, address, 12, 8, 2, down, stream) == (0,)
    assert not got.any()
    assert runtime.cudaStreamSynchronize(stream) == (0,)
    assert got.tolist() == [0, 1, 0, 3, 4, 0]
    assert runtime.cudaFree(address) == (0,)


def test_a_graph(runtime: SystemRuntime, cuda: Cuda) -> None:
    (_, stream), (_, address) = runtime.cudaStreamCreate(), runtime.cudaMalloc(8)
    mode = runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
    assert runtime.cudaStreamBeginCapture(stream, mode) == (0,)
    runtime.cudaMemsetAsync(address, 3, 8, stream)
    status, graph = runtime.cudaStreamEndCapture(stream)
    status, ready = runtime.cudaGraphInstantiateWithFlags(graph, 0)
    assert status == 0 and runtime.cudaGraphDestroy(graph) == (0,)
    assert runtime.cudaGraphLaunch(ready, stream) == runtime.cudaStreamSynchronize(stream) == (0,)
    assert ctypes.string_at(address, 8) == b"\3" * 8
    assert runtime.cudaGraphExecDestroy(ready) == (0,) and not cuda.graphs


@pytest.mark.filterwarnings("ignore:memory leak in callback")
def test_errors_have_a_status_and_a_text(runtime: SystemRuntime) -> None:
    status, _ = runtime.cudaMalloc(2 << 20)
    assert status == runtime.cudaError_t.cudaErrorMemoryAllocation == NO_MEMORY
    assert runtime.cudaGetErrorString(status) == (0, b"out of memory")
    with pytest.raises(AttributeError):
        runtime.cudaSomethingElse  # noqa: B018


def test_every_function_is_one_of_cuda_python() -> None:
    """Also those enumerations that a call takes or returns, with their values."""
    bindings = pytest.importorskip("cuda.bindings.runtime")
    for name in libcudart._PARAMETERS:
        assert hasattr(bindings, name), name
    for name in ("cudaError_t", "cudaMemcpyKind", "cudaStreamCaptureMode"):
        for member in getattr(SystemRuntime, name):
            assert int(getattr(getattr(bindings, name), member.name)) == member
    attributes = bindings.cudaDeviceAttr
    numbers = libcudart._INTEGRATED, libcudart._MAJOR, libcudart._MINOR
    assert numbers == (
        int(attributes.cudaDevAttrIntegrated),
        int(attributes.cudaDevAttrComputeCapabilityMajor),
        int(attributes.cudaDevAttrComputeCapabilityMinor),
    )

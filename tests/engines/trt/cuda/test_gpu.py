"""The GPU that is found: by which library, with which words where there is none, and its free memory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cuda_double import NO_DRIVER, Cuda
from cuda_library import CudaLibrary

from foveate.engines.trt.cuda import gpu, libcudart
from foveate.engines.trt.cuda.gpu import Gpu
from foveate.engines.trt.cuda.libcudart import SystemRuntime
from foveate.engines.trt.cuda.requirement import requirement

Machine = Callable[..., None]


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    """Stand in for a machine: cuda-python or None, libraries of the system, the driver's version or None."""

    def put(bindings: Any = None, system: tuple[Any, ...] = (), driver: str | None = None) -> None:
        monkeypatch.setattr(gpu, "_cuda_python", lambda: bindings)
        monkeypatch.setattr(libcudart, "found", lambda: map(SystemRuntime, system))
        monkeypatch.setattr(gpu, "driver", lambda: driver)

    for cached in (gpu._search, gpu.find_gpu):
        monkeypatch.setattr(gpu, cached.__name__, cached.__wrapped__)
    return put


def too_new() -> Cuda:
    found = Cuda()
    found.fail("cudaGetDeviceCount", NO_DRIVER, times=9)
    return found


@pytest.mark.parametrize("library", ["cuda-python", "libcudart"])
def test_facts_of_a_gpu(machine: Machine, library: str) -> None:
    cuda = Cuda(8 << 30, sm=87, name="Orin", integrated=True)
    machine(cuda if library == "cuda-python" else None, (CudaLibrary(cuda),), "12.6")
    assert gpu.find_gpu() == Gpu("Orin", 87, 8 << 30, integrated=True)


def test_the_systems_library_stands_in_where_cuda_python_is_newer_than_the_driver(machine: Machine) -> None:
    machine(too_new(), (CudaLibrary(too_new()), CudaLibrary(Cuda(name="seen"))), "12.6")
    found = gpu.find_gpu()
    assert isinstance(found, Gpu) and found.name == "seen"
    assert isinstance(gpu.runtime(), SystemRuntime)


def test_error_35_is_explained(machine: Machine) -> None:
    machine(too_new(), (), "12.6")
    assert gpu.find_gpu() == (
        "no GPU can be used: cuda-bindings is for CUDA 13.0, the driver for 12.6; "
        "pip install 'cuda-python>=12,<12.7', or a newer driver"
    )


@pytest.mark.parametrize(
    ("bindings", "driver", "words"),
    [
        (too_new, None, "no driver of NVIDIA is installed"),
        (lambda: None, None, "no driver of NVIDIA is installed"),
        (
            lambda: None,
            "13.2",
            "neither cuda-bindings nor libcudart .* pip install 'cuda-bindings>=13,<13.3'",
        ),
        (lambda: broken(100), "13.0", "error 100"),
        (lambda: broken(0), "13.0", "the driver knows none"),
    ],
)
def test_why_there_is_no_gpu(machine: Machine, bindings: Any, driver: str | None, words: str) -> None:
    machine(bindings(), (), driver)
    with pytest.raises(RuntimeError, match=words):
        gpu.runtime()
    assert str(gpu.find_gpu()).startswith("no GPU can be used: ")


def broken(status: int) -> Cuda:
    found = Cuda()
    if status:
        found.fail("cudaGetDeviceCount", status, times=9)
    else:
        found._cudaGetDeviceCount = lambda: 0
    return found


@pytest.mark.parametrize(
    ("cuda", "expected"),
    [
        ("12.2", "cuda-python>=12,<12.3"),
        ("12.6", "cuda-python>=12,<12.7"),
        ("12.9.1", "cuda-bindings>=12,<12.10"),
        ("13.2.1", "cuda-bindings>=13,<13.3"),
    ],
)
def test_bindings_are_not_newer_than_the_driver(cuda: str, expected: str) -> None:
    assert requirement(cuda) == expected


def test_the_page_cache_of_an_integrated_gpu_is_free_memory(tmp_path: Path) -> None:
    file = tmp_path / "meminfo"
    file.write_text("MemTotal: 7803200 kB\nMemFree: 300000 kB\nMemAvailable: 6000000 kB\n")
    orin, card = (Gpu("some", 87, 8 << 30, integrated) for integrated in (True, False))
    assert gpu.available_memory(orin, 300_000 << 10, file) == 6_000_000 << 10
    assert gpu.available_memory(card, 300_000 << 10, file) == 300_000 << 10
    assert gpu.available_memory(orin, 300_000 << 10, tmp_path / "none") == 300_000 << 10

"""TensorRT for RTX, doubles of CUDA and of TensorRT, a graph of one node, and a machine without a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import onnx.parser
import pytest
from cuda_double import Cuda
from tensorrt_double.binding import Binding

from foveate.engines.spec import GraphSpec, Symbol, TensorSpec
from foveate.engines.trt import backend as trt
from foveate.engines.trt import builder
from foveate.engines.trt.cuda import device, gpu

NEGATION = """<ir_version: 10, opset_import: ["": 24]>
negation (float16[rows] x) => (float16[rows] y) { y = Neg(x) }"""


@pytest.fixture
def rtx() -> trt.TensorRT:
    return trt.TensorRT("tensorrt-rtx")


@pytest.fixture
def negation(tmp_path: Path) -> tuple[Path, GraphSpec]:
    path, rows = tmp_path / "negation.onnx", (Symbol("rows", 1, 8, 64),)
    onnx.save(onnx.parser.parse_model(NEGATION), path)
    tensors = [TensorSpec(name, "float16", rows) for name in "xy"]
    return path, GraphSpec("negation", tuple(tensors[:1]), tuple(tensors[1:]))


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> str:
    """The words of a machine without one, on machines that have one as well."""
    words = "no GPU can be used: none is here"
    for module in (trt, device):
        monkeypatch.setattr(module, "find_gpu", lambda: words)
    device.device.cache_clear()
    return words


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cuda]:
    """A GPU in host memory, which stands in for this machine's."""
    found = Cuda()
    monkeypatch.setattr(gpu, "_search", lambda: found)
    find = gpu.find_gpu.__wrapped__
    for module in (gpu, device, trt, builder):
        monkeypatch.setattr(module, "find_gpu", find)
    device.device.cache_clear()
    yield found
    device.device.cache_clear()


@pytest.fixture
def binding(cuda: Cuda) -> Binding:
    """TensorRT on that GPU."""
    return Binding(cuda)

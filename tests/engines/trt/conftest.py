"""TensorRT for RTX, a graph of one node, and a machine without a GPU."""

from __future__ import annotations

from pathlib import Path

import onnx.parser
import pytest

from foveate.engines.spec import GraphSpec, Symbol, TensorSpec
from foveate.engines.trt import backend as trt
from foveate.engines.trt.cuda import device as trt_cuda

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
    for module in (trt, trt_cuda):
        monkeypatch.setattr(module, "find_gpu", lambda: words)
    trt_cuda.device.cache_clear()
    return words

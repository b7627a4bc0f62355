"""The dialect of ONNX Runtime on CPU and CUDA: native operators, attention over the used part of the kv cache
only."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes import common

from foveate.engines.spec import GraphSpec
from foveate.export.lowering.common_passes import CausalByLength

__all__ = ["DTYPES", "DYNAMIC", "LARGEST_SORT", "REFUSES", "ZERO_POINTS", "passes"]

DTYPES = {"fp32": "float32", "fp16": "float16", "int4": "float32", "int8": "float32"}
REFUSES = {"fp8": "ONNX Runtime has no product of fp8 numbers: it would widen the weights at every step"}
DYNAMIC = True
ZERO_POINTS = True
LARGEST_SORT = None


def passes(spec: GraphSpec) -> list[ir.passes.InPlacePass]:
    return [CausalByLength(), common.RemoveUnusedNodesPass()] if spec.in_place else []

"""The dialect of TensorRT >= 10.15 and TensorRT-RTX: the canonical graph without changes, in float16.

The explicit mask stays, because TensorRT parses and builds ``nonpad_kv_seqlen`` but silently ignores it.
"""

from __future__ import annotations

import onnx_ir as ir

from foveate.engines.spec import GraphSpec
from foveate.engines.trt.limits import LARGEST_SORT

__all__ = ["DTYPES", "DYNAMIC", "LARGEST_SORT", "REFUSES", "ZERO_POINTS", "passes"]

DTYPES = dict.fromkeys(("fp32", "fp16", "int4", "int8", "fp8"), "float16")
REFUSES: dict[str, str] = {}
DYNAMIC = False  # no MatMulInteger, no DynamicQuantizeLinear
ZERO_POINTS = False


def passes(spec: GraphSpec) -> list[ir.passes.InPlacePass]:
    return []

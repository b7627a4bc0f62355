"""TensorRT >= 10.15 and TensorRT-RTX: the canonical graph as it is, in float16.

The explicit mask stays: ``nonpad_kv_seqlen`` parses and builds there, and is silently ignored.
"""

from __future__ import annotations

import onnx_ir as ir

from foveate.engines.spec import GraphSpec

__all__ = ["DTYPES", "passes"]

DTYPES = {"fp32": "float16", "fp16": "float16", "int4": "float16"}


def passes(spec: GraphSpec) -> list[ir.passes.InPlacePass]:
    return []

"""The dialect of ONNX Runtime on CPU and CUDA: native operators.

Attention computes over the used part of the kv cache only.
"""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes import common

from foveate.engines.spec import GraphSpec
from foveate.export.lowering.common_passes import CausalByLength
from foveate.export.lowering.dialect import Dialect

__all__ = ["DIALECT"]


def _passes(spec: GraphSpec) -> tuple[ir.passes.PassBase, ...]:
    return (CausalByLength(), common.RemoveUnusedNodesPass()) if spec.in_place else ()


DIALECT = Dialect(
    dtypes={"fp32": "float32", "fp16": "float16", "int4": "float32", "int8": "float32"},
    passes=_passes,
    dynamic=True,
    zero_points=True,
    appends=False,
    largest_sort=None,
    refuses={"fp8": "ONNX Runtime has no product of fp8 numbers: it would widen the weights at every step"},
)

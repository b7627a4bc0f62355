"""The dialect of older engines, in opset 20 and float16.

It is for TensorRT before 10.15 (JetPack 6.2 has 10.3) and ONNX Runtime before 1.28. Attention, RMSNorm and
rotary embedding are written with older operators. The graph never writes the kv cache: ``present.*`` are the
new rows, which the engine appends to the old ones (``GraphSpec.appending``). Graphs with int4 weights have
opset 21, which introduced that type. TensorRT 10.3 documents opsets up to 20, and int4.
"""

from __future__ import annotations

import json
from pathlib import Path

import onnx_ir as ir
from onnx_ir.passes import common

from foveate.engines.spec import GraphSpec
from foveate.engines.trt.limits import LARGEST_SORT
from foveate.export.lowering import primitive_passes
from foveate.export.lowering.dialect import Dialect

__all__ = ["DIALECT", "OPERATORS"]

OPSET, IR_VERSION = 20, 10  # IR 10: int4

OPERATORS: dict[str, dict[str, str]] = json.loads(
    Path(__file__).with_name("tensorrt_10_3.json").read_text(encoding="utf-8")
)["operators"]
"""The documentation of TensorRT 10.3's parser: the types that each operator takes, and its restrictions."""


def _passes(spec: GraphSpec) -> tuple[ir.passes.PassBase, ...]:
    return (
        primitive_passes.AppendRows(),
        primitive_passes.Attend(),
        primitive_passes.Rotate(),
        primitive_passes.Normalize(),
        primitive_passes.DocumentedTypes(),
        common.CommonSubexpressionEliminationPass(),
        common.RemoveUnusedNodesPass(),
        common.TopologicalSortPass(),
        primitive_passes.Older(OPSET, IR_VERSION, OPERATORS),
    )


DIALECT = Dialect(
    dtypes=dict.fromkeys(("fp32", "fp16", "int4", "int8"), "float16"),
    passes=_passes,
    dynamic=False,
    zero_points=False,
    appends=True,
    largest_sort=LARGEST_SORT,
    refuses={"fp8": "no GPU that needs this dialect computes in fp8"},
)

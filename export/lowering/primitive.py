"""The dialect of TensorRT before 10.15 (JetPack 6.2 has 10.3) and ONNX Runtime before 1.28: opset 20, in
float16.

Attention, RMSNorm and rotary embedding are written with older operators. The graph never writes the kv cache:
``present.*`` are the new rows, which the engine appends to the old ones (``GraphSpec.appending``). Graphs
with int4 weights have opset 21, which introduced that type. TensorRT 10.3 documents opsets up to 20, and
int4.
"""

from __future__ import annotations

import json
from pathlib import Path

import onnx_ir as ir
from onnx_ir.passes import common

from foveate.engines.spec import GraphSpec
from foveate.engines.trt.limits import LARGEST_SORT
from foveate.export.lowering import primitive_passes as passes_of

__all__ = ["DTYPES", "DYNAMIC", "LARGEST_SORT", "OPERATORS", "REFUSES", "ZERO_POINTS", "passes"]

DTYPES = dict.fromkeys(("fp32", "fp16", "int4", "int8"), "float16")
REFUSES = {"fp8": "no GPU that needs this dialect computes in fp8"}
DYNAMIC = False
ZERO_POINTS = False

OPSET, IR_VERSION = 20, 10  # IR 10: int4

OPERATORS: dict[str, dict[str, str]] = json.loads(
    Path(__file__).with_name("tensorrt_10_3.json").read_text(encoding="utf-8")
)["operators"]
"""The documentation of TensorRT 10.3's parser: the types that each operator takes, and its restrictions."""


def passes(spec: GraphSpec) -> list[ir.passes.InPlacePass]:
    return [
        passes_of.AppendRows(),
        passes_of.Attend(),
        passes_of.Rotate(),
        passes_of.Normalize(),
        passes_of.DocumentedTypes(),
        common.CommonSubexpressionEliminationPass(),
        common.RemoveUnusedNodesPass(),
        common.TopologicalSortPass(),
        passes_of.Older(OPSET, IR_VERSION, OPERATORS),
    ]

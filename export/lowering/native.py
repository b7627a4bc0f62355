"""The dialect of TensorRT >= 10.15 and TensorRT-RTX: the canonical graph without changes, in float16.

The explicit mask stays, because TensorRT parses and builds ``nonpad_kv_seqlen`` but silently ignores it.
Ranges of int8 activations are calibrated: TensorRT takes no zero point but 0, and ``ort`` has one of 128.
"""

from __future__ import annotations

from foveate.engines.trt.limits import LARGEST_SORT
from foveate.export.lowering.dialect import Dialect

__all__ = ["DIALECT"]

DIALECT = Dialect(
    dtypes=dict.fromkeys(("fp32", "fp16", "int4", "int8", "fp8"), "float16"),
    passes=lambda spec: (),
    dynamic=False,
    zero_points=False,
    appends=False,
    largest_sort=LARGEST_SORT,
)

"""Known faults of TensorRT's versions, and how to avoid them.

``flags`` go to Myelin, TensorRT's graph compiler, through an environment variable of the build process.
NVIDIA documents neither the variable nor the flags. None of these workarounds has been confirmed by a GPU run
of ours. The float16 overflow of vision encoders in weakly typed networks (TensorRT-LLM #3223) needs no
workaround, since our networks are always strongly typed.
"""

from __future__ import annotations

from foveate.engines.workarounds import Workaround

__all__ = ["FLAGS_VARIABLE", "WORKAROUNDS"]

FLAGS_VARIABLE = "__LUNOWUD"
"""The environment variable that Myelin reads its flags from."""

WORKAROUNDS = (
    Workaround(
        "no horizontal fusion of linear layers",
        "NVIDIA/TensorRT-Edge-LLM #151: gate and up projections fused wrongly at batch 1, from 10.13 on",
        targets=("tensorrt",),
        since=(10, 13),
        flags="-peep:fc_h_fusion=off",
    ),
    Workaround(
        "no matching of two products",
        "NVIDIA/TensorRT-Edge-LLM, applyMyelinCompileWorkarounds: 10.13 and 10.14, and 11 on SM12x",
        targets=("tensorrt",),
        since=(10, 13),
        flags="-peep:match_dual_gemm=off",
    ),
    Workaround(
        "operators spelt out",
        "NVIDIA/TensorRT-Model-Connect #955: the cache's own operator fails in Myelin on SM120 and SM121",
        targets=("tensorrt", "tensorrt-rtx"),
        dialect="primitive",
    ),
    Workaround(
        "no int8 on an Orin",
        "NVIDIA/TensorRT #4832: 10.16.2 does not build int8 QuantizeLinear and DequantizeLinear on SM87",
        targets=("tensorrt",),
        since=(10, 16),
        until=(10, 17),
        sign="Could not infer output types",
        advice="build the bundle with --precision int4 or fp16, or compile with JetPack 6.2's TensorRT 10.3",
    ),
)

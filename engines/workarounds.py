"""Known faults of engine versions, and how to avoid them.

They are tried in this order when the self-test fails.

``flags`` go to Myelin, TensorRT's graph compiler, through an environment variable of the build process.
NVIDIA documents neither the variable nor the flags. None of the TensorRT workarounds has been confirmed by a
GPU run of ours. The float16 overflow of vision encoders in weakly typed networks (TensorRT-LLM #3223) needs
no workaround, since our networks are always strongly typed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["FLAGS_VARIABLE", "WORKAROUNDS", "Workaround", "applicable"]

FLAGS_VARIABLE = "__LUNOWUD"


@dataclass(frozen=True)
class Workaround:
    """A workaround for ``targets`` whose version is at least ``since`` and below ``until``.

    It gives either ``flags`` or ``options`` for the graph that answers wrongly, or another ``dialect`` for
    all graphs.
    """

    name: str
    source: str
    targets: tuple[str, ...]
    since: tuple[int, ...] = (0,)
    until: tuple[int, ...] = (999,)
    flags: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    dialect: str | None = None


WORKAROUNDS = (
    Workaround(
        "int4 products in float32",
        "accuracy level 4 rounds activations to int8, which some models amplify: "
        "seen on random ones of 64 channels",
        targets=("onnxruntime",),
        options={"accuracy_level": 1},
    ),
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
)


def applicable(target: str, version: str) -> tuple[Workaround, ...]:
    """Return the workarounds for this ``version`` of ``target``, in the order in which to try them."""
    numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
    return tuple(r for r in WORKAROUNDS if target in r.targets and r.since <= numbers < r.until)

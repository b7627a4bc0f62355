"""The target that ``scripts/gpu_check.sh`` takes on a GPU."""

from __future__ import annotations

import pytest

from foveate.engines.trt.backend import capabilities
from maintenance.gpu_target import RTX, choose


def test_the_list_is_that_of_tensorrt_rtx() -> None:
    assert [f"SM{sm}" for sm in sorted(RTX, key=str)] == capabilities()


@pytest.mark.parametrize(
    ("sm", "cuda", "installed", "asked", "expected"),
    [
        (89, "13.0", False, "", ["tensorrt-rtx", "tensorrt-rtx-cu13", "cuda-bindings>=13,<13.1"]),
        (86, "12.9", False, "", ["tensorrt-rtx", "tensorrt-rtx-cu12", "cuda-bindings>=12,<12.10"]),
        (90, "13.0", False, "", ["tensorrt", "tensorrt-cu13", "cuda-bindings>=13,<13.1"]),
        (90, "12.4", True, "", ["tensorrt", "cuda-python>=12,<12.5"]),
        (None, "12.6", True, "", ["tensorrt", "cuda-python>=12,<12.7"]),
        (90, "13.0", True, "tensorrt-rtx", ["tensorrt-rtx", "tensorrt-rtx-cu13", "cuda-bindings>=13,<13.1"]),
        (None, None, False, "", ["tensorrt-rtx", "tensorrt-rtx-cu13"]),
    ],
)
def test_a_target_that_can_run(
    sm: int | None, cuda: str | None, installed: bool, asked: str, expected: list[str]
) -> None:
    assert choose(sm, cuda, installed, asked) == expected

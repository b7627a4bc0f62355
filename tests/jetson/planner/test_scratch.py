"""The planner's scratch memory, held to what TensorRT for RTX's builder reports.

The builder needs no GPU. It stands for TensorRT's, whose figures are not known.
"""

from __future__ import annotations

import pytest

from foveate.jetson.planner import model_sizes
from foveate.jetson.planner.scratch import scratch

# "Total Activation Memory" of one layer and the head, for SM86, TensorRT for RTX 1.7.1.116, 2026-12-01:
# (rows at once, rows of the cache) -> bytes in the dialects native and primitive
REPORTED = {
    "llava-1.5-7b": {
        (512, 512): (44_254_208, 113_049_600),
        (1024, 1024): (86_510_080, 385_679_360),
        (1024, 2048): (88_609_280, 521_945_088),
        (1024, 4096): (103_817_216, 790_380_544),
    },
    "llava-1.5-13b": {
        (512, 512): (55_002_112, 139_264_000),
        (1024, 1024): (108_005_888, 480_051_200),
        (1024, 2048): (110_105_088, 649_871_360),
        (1024, 4096): (127_934_464, 985_415_680),
    },
    "llava-v1.6-mistral-7b": {
        (512, 512): (54_477_824, 78_643_200),
        (1024, 1024): (106_957_312, 291_307_520),
        (1024, 2048): (109_056_512, 427_622_400),
        (1024, 4096): (117_448_704, 700_252_160),
    },
    "qwen2.5-vl-3b": {
        (512, 512): (40_060_416, 47_194_112),
        (1024, 1024): (78_124_032, 144_195_584),
        (1024, 2048): (80_225_792, 211_828_736),
        (1024, 4096): (84_428_800, 347_095_040),
    },
    "qwen2.5-vl-7b": {
        (512, 512): (67_585_536, 81_797_120),
        (1024, 1024): (133_174_272, 252_723_200),
        (1024, 2048): (135_276_032, 371_212_288),
        (1024, 4096): (139_479_040, 608_190_464),
    },
}


@pytest.mark.parametrize("model", REPORTED)
def test_scratch_is_within_5_percent_of_what_the_builder_reported(model: str) -> None:
    decoder = model_sizes.model(model).decoder
    for (rows, cache_rows), reported in REPORTED[model].items():
        for dialect, figure in zip(("native", "primitive"), reported, strict=True):
            assert scratch(decoder, rows, cache_rows, dialect) == pytest.approx(figure, rel=0.05)

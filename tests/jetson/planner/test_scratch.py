"""The planner's scratch memory, held to what TensorRT for RTX's builder reports.

The builder needs no GPU. It stands for TensorRT's, whose figures are not known.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest

from foveate.engines.spec import GraphSpec
from foveate.engines.trt.backend import TensorRT
from foveate.export import models
from foveate.export.bundling.precision import Precision
from foveate.export.bundling.write_graphs import write_graphs
from foveate.export.checkpoints.random_weights import Dummy
from foveate.export.graphs.llm import language_graphs
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

# The same with weights in int4, and the head in float16.
REPORTED_INT4 = {
    "llava-1.5-7b": {(512, 512): (59.3e6, 117.0e6), (1024, 1024): (111.1e6, 385.3e6)},
    "llava-1.5-13b": {(512, 512): (72.2e6, 142.2e6), (1024, 1024): (132.6e6, 475.5e6)},
    "llava-v1.6-mistral-7b": {(512, 512): (63.2e6, 110.8e6), (1024, 1024): (119.3e6, 372.9e6)},
    "qwen2.5-vl-3b": {(512, 512): (46.7e6, 71.7e6), (1024, 1024): (85.3e6, 193.6e6)},
    "qwen2.5-vl-7b": {(512, 512): (74.8e6, 112.3e6), (1024, 1024): (141.4e6, 326.8e6)},
}


@pytest.mark.parametrize("model", REPORTED)
def test_scratch_is_within_5_percent_of_what_the_builder_reported(model: str) -> None:
    decoder = model_sizes.model(model).decoder
    for (rows, cache_rows), reported in REPORTED[model].items():
        for dialect, figure in zip(("native", "primitive"), reported, strict=True):
            assert scratch(decoder, rows, cache_rows, dialect) == pytest.approx(figure, rel=0.05)


@pytest.mark.parametrize("model", REPORTED_INT4)
def test_scratch_of_int4_is_hardly_below_what_the_builder_reported(model: str) -> None:
    decoder = model_sizes.model(model).decoder
    for (rows, cache_rows), reported in REPORTED_INT4[model].items():
        for dialect, figure in zip(("native", "primitive"), reported, strict=True):
            assert 0.95 <= scratch(decoder, rows, cache_rows, dialect, int4=True) / figure <= 1.15


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp16", "int4"])
@pytest.mark.parametrize("model", REPORTED)
def test_the_builder_reports_as_much_today(model: str, precision: str, tmp_path: Path) -> None:
    """One layer of the model's sizes, 1,024 rows of prompt and of cache, in both dialects."""
    write_one_layer(tmp_path, model, precision)
    spec = GraphSpec.from_json(json.loads((tmp_path / "llm.json").read_text())).typed("float16")
    rtx, decoder = TensorRT("tensorrt-rtx"), model_sizes.model(model).decoder
    for dialect in ("native", "primitive"):
        (file,) = tmp_path.glob(f"llm.{dialect}*.onnx")
        form = (spec.appending() if dialect == "primitive" else spec).with_most_rows(1024)
        options = {"max_context": 1024, "capability": ["SM86"]}
        rtx.compile_graph(file, tmp_path / dialect, form, options)
        reported = rtx.describe(tmp_path / dialect, "llm")["scratch_bytes"]
        ratio = scratch(decoder, 1024, 1024, dialect, int4=precision == "int4") / reported
        assert 0.95 <= ratio <= (1.15 if precision == "int4" else 1.05), (dialect, ratio)


def write_one_layer(folder: Path, model: str, precision: str) -> None:
    """Write the language model ``llm`` with one layer of random weights in both dialects, and its spec."""
    found = next(models.family(name) for name in models.families() if model in models.family(name).CONFIGS)
    config = copy.deepcopy(found.CONFIGS[model])
    config.get("text_config", config)["num_hidden_layers"] = 1
    parts = found.load(Dummy(model, config))
    graphs = language_graphs(parts, None)
    write_graphs(folder, parts, graphs, Precision(precision), ["native", "primitive"], lambda *_: None, None)
    (graph,) = graphs
    (folder / "llm.json").write_text(json.dumps(graph.spec.to_json()))

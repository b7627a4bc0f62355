"""Memory of a plan: what TensorRT allocates, and what its compiler reported."""

from __future__ import annotations

import math

import pytest

from foveate.engines.trt.profiles import settled
from foveate.jetson.device.devices import device
from foveate.jetson.planner import model_sizes
from foveate.jetson.planner.memory import memory
from foveate.runtime.bundle.loading import load

NANO = device("orin-nano-8gb")


@pytest.mark.parametrize(
    ("dialect", "rows", "reported"),
    [("native", 4096, 371e6), ("native", 1024, 104e6), ("primitive", 4096, 5547e6)],
)
def test_scratch_is_what_the_compiler_reported(dialect, rows, reported):
    """TensorRT for RTX 1.7.1's "Total Activation Memory" of one layer of LLaVA-1.5-7B's sizes, for SM86."""
    needs = memory(model_sizes.model("llava-1.5-7b"), NANO, max_context=rows, dialect=dialect)
    assert needs.scratch == pytest.approx(reported, rel=0.1)


def test_the_cache_is_what_tensorrt_allocates(make_bundle):
    """Every row of ``max_context`` in every layer, whatever is kept."""
    manifest = load(make_bundle()).manifest
    spec = settled(manifest.graphs["llm"].typed("float16"), 96)
    caches = [tensor for tensor in spec.inputs if tensor.name.startswith("past.")]
    sizes = sum(math.prod(tensor.extent("max")) * 2 for tensor in caches)
    assert memory(model_sizes.Model(manifest), NANO, max_context=96).cache == sizes

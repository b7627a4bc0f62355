"""Memory of a plan: kv cache, scratch, buffers, and what firmware and a CUDA context take."""

from __future__ import annotations

import math
from dataclasses import replace

from foveate.engines.trt.profiles import settled
from foveate.jetson.device.devices import device
from foveate.jetson.planner import model_sizes
from foveate.jetson.planner.memory import memory
from foveate.jetson.planner.plan import plan
from foveate.jetson.planner.scratch import scratch
from foveate.runtime.bundle.loading import load
from foveate.runtime.llm.cache_rows import cache_rows

NANO, AGX = device("orin-nano-8gb"), device("agx-orin-64gb")


def test_the_cache_is_what_tensorrt_allocates(make_bundle):
    """Every row of ``max_context`` in every layer, whatever is kept."""
    manifest = load(make_bundle()).manifest
    spec = settled(manifest.graphs["llm"].typed("float16"), 96)
    caches = [tensor for tensor in spec.inputs if tensor.name.startswith("past.")]
    sizes = sum(math.prod(tensor.extent("max")) * 2 for tensor in caches)
    assert memory(model_sizes.Model(manifest), NANO, max_context=96).cache == sizes


def test_the_default_cache_is_that_of_compile(make_bundle):
    """Rows for the largest image, whatever image is planned for."""
    for name in ("llava-1.5-7b", "llava-v1.6-vicuna-7b", "qwen2.5-vl-7b"):
        m = model_sizes.model(name)
        built = replace(m.manifest, num_visual_tokens=m.most_visual_tokens)
        assert plan(m, AGX)["memory"]["max_context"] == cache_rows(built)
    assert [model_sizes.model(name).cache_rows() for name in ("llava-1.5-7b", "qwen2.5-vl-7b")] == [
        1024,
        4096,
    ]
    assert model_sizes.model("llava-v1.6-vicuna-7b").cache_rows() == 3328
    m = model_sizes.model("qwen2.5-vl-7b", visual_tokens=64)
    assert (m.manifest.num_visual_tokens, m.cache_rows()) == (64, 4096)


def test_an_in_llm_pruner_gets_the_whole_prompt_at_once():
    """So scratch grows with ``max_context`` there, and stays that of 1,024 rows elsewhere."""
    for method, rows in (("sppruner", 1024), ("fastv", 4096)):
        m = model_sizes.model("llava-1.5-7b", method)
        needs = memory(m, AGX, max_context=4096, dialect="native")
        assert needs.rows == rows and needs.scratch == scratch(m.decoder, rows, 4096, "native", int4=True)
    assert memory(model_sizes.model("llava-1.5-7b"), AGX, max_context=512).rows == 512


def test_firmware_is_what_the_module_does_not_show():
    """An Orin Nano's /proc/meminfo says MemTotal 7,803,200 kB."""
    needs = memory(model_sizes.model("llava-1.5-7b"), NANO, desktop=False)
    assert NANO.memory - (needs.system - 800_000_000) == 7_803_200 * 1024
    on_a_pc = memory(model_sizes.model("llava-1.5-7b"), device("rtx-4090"))
    assert on_a_pc.system == 0 and on_a_pc.context == needs.context > 0


def test_new_rows_take_buffers_where_the_graph_gives_them_out():
    """The dialect primitive: keys and values of all layers of a graph, before they are copied."""
    m = model_sizes.model("llava-1.5-7b")
    native, primitive, parts = (
        memory(m, NANO, max_context=1024, dialect=dialect, llm_parts=count)
        for dialect, count in (("native", 1), ("primitive", 1), ("primitive", 4))
    )
    assert native.buffers == 1024 * 2 * 4096 * 2
    assert primitive.buffers - native.buffers == primitive.cache == 32 * 1024 * 2 * 4096 * 2
    assert parts.buffers - native.buffers == primitive.cache // 4

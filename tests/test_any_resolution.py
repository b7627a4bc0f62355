"""Every method on a tiny LLaVA-NeXT, whose pictures come in tiles: the graphs, and what the runtime makes of their shapes."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from foveate.engines import trt
from foveate.export import methods
from foveate.export.build import build
from foveate.export.models import llava_next
from foveate.runtime import check
from foveate.runtime.bundle import load
from foveate.runtime.compile import compile_bundle
from foveate.runtime.pipeline import Pipeline
from foveate.runtime.plans import choose

PARTS = llava_next.tiny(layers=4)  # one for all: what methods share is traced once
QUESTION = "What is left of the bus?"
OPTIONS = {"tome": {"keep": "16"}}  # of a tile, whose number is fixed when a bundle is built
SIZES = [(56, 56), (84, 20), (25, 61)]  # width and height: 5 tiles; 4 with padding above and below; 3, beside


@pytest.fixture(scope="module")
def pipes(tmp_path_factory):
    root, found = tmp_path_factory.mktemp("tiles"), {}

    def get(method: str, **options: str) -> Pipeline:
        key = "-".join([method, *options.values()])
        if key not in found:
            build(PARTS, methods.load(method, options), root / key, precision="fp32", dialects=["ort"])
            compile_bundle(root / key)
            found[key] = Pipeline.load(root / key)
        return found[key]

    return get


def picture(size: tuple[int, int]) -> Image.Image:
    return Image.fromarray(np.random.default_rng(5).integers(0, 256, (size[1], size[0], 3), np.uint8))


@pytest.mark.parametrize("method", [name for name in methods.names() if name != "none"])
def test_budgets(pipes, method):
    pipe, whole, chosen = pipes(method, **OPTIONS.get(method, {})), pipes("none"), methods.load(method)
    for size in SIZES:
        image = picture(size)
        every = whole.generate(image, QUESTION, max_new_tokens=6)
        total = every.layouts[0].total
        answer = pipe.generate(image, QUESTION, keep=None if method == "tome" else total, max_new_tokens=6)
        if method == "tome":  # merges within a tile, and newlines are no tokens of one
            assert answer.kept[0].tolist() == every.layouts[0].whole[0].tolist()
            continue
        assert answer.tokens == every.tokens
        assert answer.kept[0].tolist() == list(range(total))
        for keep in (1, 7, total // 2):
            kept = pipe.generate(image, QUESTION, keep=keep, max_new_tokens=1).kept[0]
            if chosen.before:
                assert len(kept) == keep or (not chosen.fills and len(kept) < keep)
            placed = kept[kept >= 0]
            assert len(set(placed)) == len(placed) and kept.min() >= -1 and kept.max() < total
            assert chosen.merges or (len(placed) == len(kept) and (np.diff(kept) > 0).all())
    plan = choose(pipe.bundle)
    assert all(finding.ok for finding in check.replay(pipe.bundle, plan))
    if "pruner" in pipe.manifest.stages:
        spec = pipe.manifest.spec("pruner", "ort")
        assert len(trt.compile_plan(pipe.bundle.graph_file("pruner", "ort"), spec)) > 1000


@pytest.mark.parametrize("method", ["none", "tome"])
def test_tensorrt_rtx_compiles_batches_of_tiles(tmp_path, method):
    build(
        PARTS, methods.load(method, OPTIONS.get(method, {})), tmp_path, precision="fp16", dialects=["native"]
    )
    bundle = load(tmp_path)
    file = bundle.graph_file("vision_encoder", "native")
    assert len(trt.compile_plan(file, bundle.manifest.spec("vision_encoder", "native"))) > 1000

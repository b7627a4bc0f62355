"""Every method on tiny models whose pictures differ in their tokens: the graphs, and what the runtime makes of the shapes.

Each takes many seconds; those of ``OFTEN`` are in every test run, all of them in ``make matrix``.
"""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from foveate.engines import trt
from foveate.engines.errors import UserError
from foveate.export import methods
from foveate.export.assemble import assemble
from foveate.export.build import build
from foveate.export.models import llava_next, qwen2_5_vl
from foveate.runtime import check
from foveate.runtime.bundle import load
from foveate.runtime.compile import compile_bundle
from foveate.runtime.pipeline import Pipeline
from foveate.runtime.plans import choose

PARTS = {  # one of each for all: what methods share is traced once
    "tiles": llava_next.tiny(layers=4),
    "windows": qwen2_5_vl.tiny(layers=4),
}
QUESTION = "What is left of the bus?"
OPTIONS = {"tome": {"keep": "16"}}  # of a tile, whose number is fixed when a bundle is built
REFUSED = {
    "tome": "layers",
    "trim": "clip_image",
    "visionzip": "cls_attention_heads, cls_feature, keys",
}
SIZES = [(56, 56), (84, 20), (25, 61)]  # width and height: 5 tiles; 4 with padding above and below; 3, beside
OFTEN = {("tiles", "visionzip"), ("windows", "sppruner")}
CASES = [
    pytest.param(kind, name, marks=() if (kind, name) in OFTEN else pytest.mark.slow)
    for kind in PARTS
    for name in methods.names()
    if name != "none" and not (kind == "windows" and name in REFUSED)
]


@pytest.fixture(scope="module")
def pipes(tmp_path_factory):
    root, found = tmp_path_factory.mktemp("pipes"), {}

    def get(kind: str, method: str) -> Pipeline:
        key = f"{kind}.{method}"
        if key not in found:
            chosen = methods.load(method, OPTIONS.get(method, {}))
            build(PARTS[kind], chosen, root / key, precision="fp32", dialects=["ort"])
            compile_bundle(root / key)
            found[key] = Pipeline.load(root / key)
        return found[key]

    return get


def picture(size: tuple[int, int]) -> Image.Image:
    return Image.fromarray(np.random.default_rng(5).integers(0, 256, (size[1], size[0], 3), np.uint8))


@pytest.mark.parametrize(("kind", "method"), CASES)
def test_budgets(pipes, kind, method):
    pipe, whole, chosen = pipes(kind, method), pipes(kind, "none"), methods.load(method)
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
    findings = list(check.replay(pipe.bundle, choose(pipe.bundle)))
    assert findings and all(finding.ok for finding in findings)
    if "pruner" in pipe.manifest.stages:
        spec = pipe.manifest.spec("pruner", "ort")
        assert len(trt.compile_plan(pipe.bundle.graph_file("pruner", "ort"), spec)) > 1000


@pytest.mark.parametrize("method", REFUSED)
def test_what_has_no_class_token_or_clip_is_refused_with_what_works(method):
    with pytest.raises(
        UserError, match=f"qwen2_5_vl has no {REFUSED[method]}, which {method} reads"
    ) as error:
        assemble(PARTS["windows"], methods.load(method))
    able = str(error.value).rpartition("methods that work: ")[2].split(", ")
    assert able == [name for name in methods.names() if name not in REFUSED]


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "method"), [("tiles", "none"), ("tiles", "tome"), ("windows", "sppruner")])
def test_tensorrt_rtx_compiles_the_encoder_and_the_decoder(tmp_path, kind, method):
    build(
        PARTS[kind],
        methods.load(method, OPTIONS.get(method, {})),
        tmp_path,
        precision="fp16",
        dialects=["native"],
    )
    bundle = load(tmp_path)
    for graph in bundle.manifest.stages:
        plan = trt.compile_plan(
            bundle.graph_file(graph, "native"), bundle.manifest.spec(graph, "native"), max_context=128
        )
        assert len(plan) > 1000

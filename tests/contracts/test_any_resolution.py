"""Every method on every family whose images differ in their tokens: graphs, and shapes at run time.

Each takes many seconds: one method of each family is in every test run, all of them are in ``make matrix``.
"""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from foveate.engines.errors import UserError
from foveate.engines.trt import backend as trt
from foveate.export import methods
from foveate.export.build import build
from foveate.export.graphs.assemble import assemble, missing
from foveate.export.models import families, family
from foveate.runtime.bundle.compiled import choose
from foveate.runtime.bundle.loading import load
from foveate.runtime.compiling import self_test
from foveate.runtime.compiling.compile import compile_bundle
from foveate.runtime.pipeline import Pipeline

FAMILIES = {name: parts for name in families() if (parts := family(name).tiny(layers=4)).spec.vision.varies}
"""Return the families whose images differ in their tokens.

The ModelParts serve all tests, so what methods share is traced once.
"""
QUESTION = "What is left of the bus?"
SIZES = [(56, 56), (84, 20), (25, 61)]  # width and height: 5 tiles; 4 with padding above and below; 3, beside


def works(name: str, method: str) -> bool:
    return not missing(FAMILIES[name].spec, methods.load(method))


OFTEN = {
    name: next(method for method in ("visionzip", "sppruner", "uniform") if works(name, method))
    for name in FAMILIES
}
CASES = [
    pytest.param(name, method, marks=() if OFTEN[name] == method else pytest.mark.slow)
    for name in FAMILIES
    for method in methods.names()
    if method != "none" and works(name, method)
]
REFUSED = [(name, method) for name in FAMILIES for method in methods.names() if not works(name, method)]


def options(name: str, method: str) -> dict[str, str]:
    """A method whose budget is fixed when a bundle is built is told to keep everything (of a tile)."""
    spec = FAMILIES[name].spec
    fixed = methods.load(method).fixed_keep(spec) is not None
    return {"keep": str(spec.vision.num_tokens)} if fixed else {}


@pytest.fixture(scope="module")
def pipes(tmp_path_factory):
    root, found = tmp_path_factory.mktemp("pipes"), {}

    def get(name: str, method: str) -> Pipeline:
        key = f"{name}.{method}"
        if key not in found:
            chosen = methods.load(method, options(name, method))
            build(FAMILIES[name], chosen, root / key, precision="fp32", dialects=["ort"])
            compile_bundle(root / key)
            found[key] = Pipeline.load(root / key)
        return found[key]

    return get


def drawn(size: tuple[int, int]) -> Image.Image:
    return Image.fromarray(np.random.default_rng(5).integers(0, 256, (size[1], size[0], 3), np.uint8))


@pytest.mark.parametrize(("name", "method"), CASES)
def test_budgets(pipes, name, method):
    pipe, whole, chosen = pipes(name, method), pipes(name, "none"), methods.load(method)
    fixed = bool(options(name, method))
    merges = any(part.merges for part in (chosen.pre_llm, chosen.in_llm) if part)
    for size in SIZES:
        image = drawn(size)
        every = whole.generate(image, QUESTION, max_new_tokens=6)
        total = every.layouts[0].total
        answer = pipe.generate(image, QUESTION, keep=None if fixed else total, max_new_tokens=6)
        if fixed:  # merges within a tile, and newlines are no tokens of one
            assert answer.kept[0].tolist() == every.layouts[0].whole[0].tolist()
            continue
        assert answer.tokens == every.tokens
        assert answer.kept[0].tolist() == list(range(total))
        for keep in (1, 7, total // 2):
            kept = pipe.generate(image, QUESTION, keep=keep, max_new_tokens=1).kept[0]
            if chosen.pre_llm:
                assert len(kept) == keep or (not chosen.pre_llm.fills and len(kept) < keep)
            placed = kept[kept >= 0]
            assert len(set(placed)) == len(placed) and kept.min() >= -1 and kept.max() < total
            assert merges or (len(placed) == len(kept) and (np.diff(kept) > 0).all())
    findings = list(self_test.replay(pipe.bundle, choose(pipe.bundle)))
    assert findings and all(finding.ok for finding in findings)
    if "pruner" in pipe.manifest.stages:
        spec = pipe.manifest.spec("pruner", "ort")
        assert len(trt.compile_plan(pipe.bundle.graph_file("pruner", "ort"), spec)) > 1000


@pytest.mark.parametrize(("name", "method"), REFUSED)
def test_a_method_whose_taps_are_missing_is_refused_with_those_that_work(name, method):
    lacks = ", ".join(missing(FAMILIES[name].spec, methods.load(method)))
    with pytest.raises(UserError, match=f"{name} has no {lacks}, which {method} reads") as error:
        assemble(FAMILIES[name], methods.load(method))
    able = str(error.value).rpartition("methods that work: ")[2].split(", ")
    assert able == [other for other in methods.names() if works(name, other)]


def test_qwen_has_no_class_token_joint_space_or_merging():
    """The others are derived; these are said here."""
    spec = FAMILIES["qwen2_5_vl"].spec
    said = {
        "tome": ["layers"],
        "trim": ["clip_image"],
        "visionzip": ["cls_attention_heads", "cls_feature", "keys"],
    }
    assert {method: missing(spec, methods.load(method)) for method in said} == said
    assert works("llava_next", "visionzip") and works("qwen2_5_vl", "sppruner")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "method"), [("llava_next", "none"), ("llava_next", "tome"), ("qwen2_5_vl", "sppruner")]
)
def test_tensorrt_rtx_compiles_the_encoder_and_the_decoder(tmp_path, name, method):
    chosen = methods.load(method, options(name, method))
    build(FAMILIES[name], chosen, tmp_path, precision="fp16", dialects=["native"])
    bundle = load(tmp_path)
    for graph in bundle.manifest.stages:
        plan = trt.compile_plan(
            bundle.graph_file(graph, "native"), bundle.manifest.spec(graph, "native"), max_context=128
        )
        assert len(plan) > 1000

"""A language model that is cut into parts to be compiled one after another answers as the whole one.

``test_llm`` tests in-LLM methods in parts against a decoder in torch, ``test_calibrate`` a calibration.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from foveate.engines.errors import UserError
from foveate.export import methods
from foveate.export.build import build
from foveate.export.graphs.assemble import assemble
from foveate.export.graphs.llm import _bounds
from foveate.export.models import llava
from foveate.export.pruning.in_llm import PruneLayer
from foveate.runtime.cli import check
from foveate.runtime.cli.inspect import main as inspect
from foveate.runtime.compiling.compile import compile_bundle
from foveate.runtime.pipeline import Pipeline

WHOLE = {"none": {}, "feather": {"layers": "2,4"}, "sparsevlm": {"layers": "1,2,3"}}
STAGES = {
    "none": ["llm.0", "llm.1", "llm.2"],
    "feather": ["llm.0", "pruner.0", "llm.1", "llm.2", "pruner.1", "llm.3"],
    "sparsevlm": ["llm.0", "llm.1", "pruner.0", "llm.2", "pruner.1", "llm.3", "pruner.2", "llm.4"],
}


def test_the_parts_are_stages_that_prove_themselves(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, wanted = tmp_path / "bundle", ["vision_encoder", "llm.0", "llm.1"]
    parts = llava.tiny(layers=2)
    build(parts, methods.load("none"), root, precision="fp32", dialects=["ort"], llm_parts=2)
    compile_bundle(root)
    assert json.loads((root / "bundle.json").read_text())["methods"][0]["stages"] == wanted
    assert check.main([str(root)]) == 0
    assert inspect([str(root)]) == 0
    printed = capsys.readouterr().out
    assert all(f"\n{name}\n" in printed for name in wanted)
    assert "llm.1.ort.onnx" in printed and "WRONG" not in printed


@pytest.mark.slow
@pytest.mark.parametrize("name", WHOLE)
def test_the_same_tokens_and_the_same_choice(name: str, tmp_path: Path) -> None:
    """And the same weights, stored once. TensorRT-RTX takes every part."""
    parts, method, stages = llava.tiny(layers=5), methods.load(name, WHOLE[name]), STAGES[name]
    roots = tmp_path / "whole", tmp_path / "parts"
    for root, count in zip(roots, (1, sum(stage.startswith("llm") for stage in stages)), strict=True):
        build(parts, method, root, precision="fp16", dialects=["ort", "native"], llm_parts=count)
        compile_bundle(root)
    assert talk(roots[0]) == talk(roots[1])
    whole, cut = (sum(file.stat().st_size for file in (root / "weights").iterdir()) for root in roots)
    assert whole == cut
    options = {"capability": ["SM86"], "max_context": 64}
    folder = compile_bundle(roots[1], "tensorrt-rtx", options=options, self_test=False)
    assert {*stages} <= {file.stem for file in folder.glob("*.plan")}


def talk(root: Path) -> list[object]:
    """Two turns with an image in each: tokens, and what is left of the images behind every pruner."""
    random = np.random.default_rng(0)
    images = [Image.fromarray(random.integers(0, 256, (70, 90, 3), np.uint8)) for _ in range(2)]
    pipe, said = Pipeline.load(root), []
    chat, keep = pipe.chat(), 20 if pipe.manifest.method.prunes else None
    for image, question in zip(images, ("What is left of the bus?", "And right?"), strict=True):
        answer = chat.ask(question, [image], keep=keep, max_new_tokens=8)
        assert len(answer.tokens) == 8
        said += [answer.tokens, [{k: v.tolist() for k, v in stage.items()} for stage in answer.stages]]
    return said


@pytest.mark.parametrize(
    ("cuts", "parts", "bounds"),
    [
        ((), 1, [0, 32]),
        ((), 4, [0, 8, 16, 24, 32]),
        ((), 3, [0, 10, 21, 32]),
        ((PruneLayer(8, 7), PruneLayer(16, 15)), 2, [0, 8, 16, 32]),  # the method's own are enough
        ((PruneLayer(8, 7), PruneLayer(16, 15)), 5, [0, 4, 8, 16, 24, 32]),  # of equal ones the first
        ((PruneLayer(2, 0),), 32, [0, *range(2, 33)]),  # none between the layer that scores and its cut
    ],
)
def test_cuts_of_the_decoder(cuts: tuple[PruneLayer, ...], parts: int, bounds: list[int]) -> None:
    assert _bounds(32, cuts, parts) == bounds


@pytest.mark.parametrize("count", [0, -1, 6])
def test_a_wrong_number_of_parts_is_refused(count: int) -> None:
    with pytest.raises(UserError, match=rf"into {count} parts \| expected 1 to 5") as error:
        assemble(llava.tiny(layers=5), methods.load("none"), count)
    assert error.value.code == 2

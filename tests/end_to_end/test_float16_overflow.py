"""A model whose numbers float16 cannot hold gives an error, and its advice works.

It is compiled without a self-test.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from foveate.engines.errors import UserError
from foveate.export import methods, models
from foveate.export.build import build
from foveate.export.bundling.reference import ranges
from foveate.runtime import cli
from foveate.runtime.compiling.compile import compile_bundle
from foveate.runtime.pipeline import Pipeline

LARGEST = {"llm": r"layers\.0\.mlp\.down_proj", "vision_encoder": r"multi_modal_projector\.linear_2\.weight"}


@pytest.fixture(params=["llm", pytest.param("vision_encoder", marks=pytest.mark.slow)])
def overflowing(request, tmp_path, save_checkpoint, monkeypatch) -> tuple[str, Path]:
    """The graph in which float16 overflows, and a bundle as builds made it that did not widen such graphs."""
    monkeypatch.setattr(ranges, "MARGIN", 0.0)
    path, graph = tmp_path / "checkpoint", request.param
    save_checkpoint(path)
    tensors = load_file(path / "model.safetensors")
    (name,) = (name for name in tensors if re.search(LARGEST[graph], name))
    tensors[name] = tensors[name].to(torch.float32) * 3e4
    save_file(tensors, path / "model.safetensors", {"format": "pt"})
    parts = models.load(str(path))
    build(parts, methods.load("none"), tmp_path / "bundle", precision="int4", dialects=["ort", "primitive"])
    return graph, tmp_path / "bundle"


def test_an_error_names_the_stage_and_its_remedy_works(overflowing) -> None:
    graph, bundle = overflowing
    image = Image.fromarray(np.random.default_rng(3).integers(0, 256, (60, 80, 3), np.uint8))
    compile_bundle(bundle, dialect="primitive", self_test=False)
    pipe = Pipeline.load(bundle)
    for asked in ({}, {"temperature": 1.0}):
        with pytest.raises(UserError, match=f"{graph} computed NaN or infinity.* in float16") as error:
            pipe.generate(image, "what is it?", max_new_tokens=8, **asked)
    (command,) = re.findall("`foveate (.*)`", str(error.value))
    assert cli.main([*shlex.split(command), "--no-self-test"]) == 0
    answer = Pipeline.load(bundle).generate(image, "what is it?", max_new_tokens=8)
    assert len(answer.tokens) == 8 and any(answer.tokens)

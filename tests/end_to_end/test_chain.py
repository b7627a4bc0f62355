"""The chain as a whole on the tiny model: budgets, and what pruning must not change.

Most methods are slow tests.
"""

from __future__ import annotations

import re

import numpy as np
import pytest
from often import often
from PIL import Image

from foveate.engines.errors import UserError
from foveate.export import methods
from foveate.export.models import llava
from foveate.runtime.cli import check, inspect
from foveate.runtime.compiling.compile import compile_bundle
from foveate.runtime.measuring import costs
from foveate.runtime.pipeline import Pipeline

QUESTION = "What is left of the bus?"
SPEC = llava.tiny(layers=4).spec
FIXED = [name for name in methods.names() if methods.load(name).fixed_keep(SPEC) is not None]
"""Methods whose budget is decided when a bundle is built."""


@pytest.fixture(scope="module")
def pipes(method_bundle):
    found = {}

    def get(method: str, **options: str) -> Pipeline:
        path = method_bundle(method, **options)
        if path not in found:
            compile_bundle(path)
            found[path] = Pipeline.load(path)
        return found[path]

    return get


@pytest.fixture
def image():
    return Image.fromarray(np.random.default_rng(5).integers(0, 256, (70, 90, 3), np.uint8))


@pytest.mark.parametrize("method", often(name for name in methods.names() if name != "none"))
def test_keeping_everything_is_method_none(pipes, image, method):
    whole = pipes("none").generate(image, QUESTION, max_new_tokens=24)
    pruned = pipes(method, **({"keep": str(SPEC.vision.num_tokens)} if method in FIXED else {}))
    total = pruned.manifest.num_visual_tokens
    answer = pruned.generate(image, QUESTION, keep=total, max_new_tokens=24)
    assert answer.tokens == whole.tokens
    np.testing.assert_array_equal(answer.kept[0], np.arange(total))


@pytest.mark.parametrize("method", often(name for name in methods.names() if name not in ("none", *FIXED)))
def test_one_bundle_serves_every_budget(pipes, image, method):
    pipe = pipes(method)
    total = pipe.manifest.num_visual_tokens
    chosen, text = methods.load(method), set()
    merges = any(part.merges for part in (chosen.pre_llm, chosen.in_llm) if part)
    for keep in range(1, total + 1):
        answer = pipe.generate(image, QUESTION, keep=keep, max_new_tokens=2)
        kept = answer.kept[0]
        assert not chosen.pre_llm or len(kept) == keep or (not chosen.pre_llm.fills and len(kept) < keep)
        placed = kept[kept >= 0]
        assert len(set(placed)) == len(placed) and kept.min() >= -1 and kept.max() < total
        assert merges or (len(placed) == len(kept) and (np.diff(kept) > 0).all())
        text.add(answer.timings.prompt_rows - len(answer.stages[0].get("pruner", range(total))))
    assert len(text) == 1


def test_an_encoder_that_merges_has_one_budget(pipes, image):
    pipe = pipes("tome", keep="24")
    assert pipe.manifest.stages == ("vision_encoder", "llm")
    answer = pipe.generate(image, QUESTION, max_new_tokens=2)
    kept, owner = answer.kept[0], answer.owners[0]
    assert len(kept) == 24 and (np.diff(kept) > 0).all()
    assert owner.shape == (64,) and set(owner) == set(range(24)) and (owner[kept] == np.arange(24)).all()
    whole = pipes("none").generate(image, QUESTION, max_new_tokens=2)
    assert whole.timings.prompt_rows - answer.timings.prompt_rows == 64 - 24
    assert costs.schedule(pipe.manifest) == costs.measured(pipe.manifest, answer.stages[0]) == ((4, 24),)
    assert pipe.generate(image, QUESTION, keep=24, max_new_tokens=2).tokens == answer.tokens
    with pytest.raises(UserError, match="always keeps 24 of 64 tokens"):
        pipe.generate(image, QUESTION, keep=25)


def test_bundles_of_an_encoder_that_merges_are_checked_and_inspected(pipes, capsys):
    path = str(pipes("tome", keep="24").bundle.path)
    assert check.main([path]) == 0
    assert re.search(r"vision_encoder +tokens, kept .* agreement 100.0%", capsys.readouterr().out)
    assert inspect.main([path]) == 0
    assert (
        "tome (position_mode=compact, keep=24), positions compact, always 24 visual tokens"
        in capsys.readouterr().out
    )


@pytest.mark.parametrize("position_mode", ["compact", "keep"])
def test_position_modes_differ_only_when_something_is_pruned(pipes, image, position_mode):
    pipe = pipes("uniform", position_mode=position_mode)
    total = pipe.manifest.num_visual_tokens
    whole = pipes("none").generate(image, QUESTION, max_new_tokens=12)
    assert pipe.generate(image, QUESTION, keep=total, max_new_tokens=12).tokens == whole.tokens


def test_relevance_from_clip_runs_the_text_tower(pipes, image):
    pipe = pipes("sppruner", relevance="clip")
    assert "text_encoder" in pipe.manifest.stages
    first = pipe.generate(image, "a red circle", keep=4, max_new_tokens=2)
    assert len(first.kept[0]) == 4


def test_cache_is_sized_to_prompt_and_answer(pipes, image):
    pipe = pipes("sppruner")
    spec = pipe.manifest.decoder
    row = 2 * spec.num_layers * spec.num_kv_heads * spec.head_dim * 2  # float16
    few = pipe.generate(image, QUESTION, keep=2, max_new_tokens=5)
    many = pipe.generate(image, QUESTION, keep=pipe.manifest.num_visual_tokens, max_new_tokens=5)
    for answer in (few, many):
        assert answer.timings.cache_bytes_allocated == row * (answer.timings.prompt_rows + 5)
        assert answer.timings.cache_bytes_used <= answer.timings.cache_bytes_allocated
    assert few.timings.cache_bytes_allocated < many.timings.cache_bytes_allocated

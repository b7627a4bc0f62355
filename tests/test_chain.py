"""The chain as a whole on the tiny model: budgets, and what pruning must not change."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from foveate.export import methods
from foveate.export.build import build
from foveate.export.models import llava
from foveate.runtime.compile import compile_bundle
from foveate.runtime.pipeline import Pipeline

QUESTION = "What is left of the bus?"
FILL_FEWER = {"holov", "vscan"}  # published quotas whose remainder goes nowhere


@pytest.fixture(scope="module")
def pipes(tmp_path_factory):
    root, found = tmp_path_factory.mktemp("chain"), {}

    def get(method: str, **options: str) -> Pipeline:
        key = "-".join([method, *options.values()])
        if key not in found:
            build(
                llava.tiny(layers=4),
                methods.load(method, options),
                root / key,
                precision="fp32",
                dialects=["ort"],
            )
            compile_bundle(root / key)
            found[key] = Pipeline.load(root / key)
        return found[key]

    return get


@pytest.fixture
def picture():
    return Image.fromarray(np.random.default_rng(5).integers(0, 256, (70, 90, 3), np.uint8))


@pytest.mark.parametrize("method", [name for name in methods.names() if name != "none"])
def test_keeping_everything_is_method_none(pipes, picture, method):
    whole = pipes("none").generate(picture, QUESTION, max_new_tokens=24)
    pruned = pipes(method)
    total = pruned.manifest.num_visual_tokens
    answer = pruned.generate(picture, QUESTION, keep=total, max_new_tokens=24)
    assert answer.tokens == whole.tokens
    np.testing.assert_array_equal(answer.kept[0], np.arange(total))


@pytest.mark.parametrize("method", [name for name in methods.names() if name != "none"])
def test_one_bundle_serves_every_budget(pipes, picture, method):
    pipe = pipes(method)
    total = pipe.manifest.num_visual_tokens
    chosen, text = methods.load(method), set()
    for keep in range(1, total + 1):
        answer = pipe.generate(picture, QUESTION, keep=keep, max_new_tokens=2)
        kept = answer.kept[0]
        assert not chosen.before or len(kept) == keep or (not chosen.fills and len(kept) < keep)
        placed = kept[kept >= 0]
        assert len(set(placed)) == len(placed) and kept.min() >= -1 and kept.max() < total
        assert chosen.merges or (len(placed) == len(kept) and (np.diff(kept) > 0).all())
        text.add(answer.timings.prompt_rows - len(answer.stages[0].get("pruner", range(total))))
    assert len(text) == 1


@pytest.mark.parametrize("position_mode", ["compact", "keep"])
def test_position_modes_differ_only_when_something_is_pruned(pipes, picture, position_mode):
    pipe = pipes("uniform", position_mode=position_mode)
    total = pipe.manifest.num_visual_tokens
    whole = pipes("none").generate(picture, QUESTION, max_new_tokens=12)
    assert pipe.generate(picture, QUESTION, keep=total, max_new_tokens=12).tokens == whole.tokens


def test_relevance_from_clip_runs_the_text_tower(pipes, picture):
    pipe = pipes("sppruner", relevance="clip")
    assert "text_encoder" in pipe.manifest.stages
    first = pipe.generate(picture, "a red circle", keep=4, max_new_tokens=2)
    assert len(first.kept[0]) == 4


def test_cache_is_sized_to_prompt_and_answer(pipes, picture):
    pipe = pipes("sppruner")
    spec = pipe.manifest.decoder
    row = 2 * spec["num_layers"] * spec["num_kv_heads"] * spec["head_dim"] * 4
    few = pipe.generate(picture, QUESTION, keep=2, max_new_tokens=5)
    many = pipe.generate(picture, QUESTION, keep=pipe.manifest.num_visual_tokens, max_new_tokens=5)
    for answer in (few, many):
        assert answer.timings.cache_bytes_allocated == row * (answer.timings.prompt_rows + 5)
        assert answer.timings.cache_bytes_used <= answer.timings.cache_bytes_allocated
    assert few.timings.cache_bytes_allocated < many.timings.cache_bytes_allocated

"""The contract of every in-LLM method: how many rows stay, in torch and ONNX Runtime.

Nothing overflows in half precision. ``tests/contracts/test_graphs.py`` compiles their graphs with TensorRT
for RTX. Tests that export or compile are slow for most methods.
"""

from __future__ import annotations

import pytest
import torch
from often import METHODS, often

from foveate.export import methods
from foveate.export.models import llava
from foveate.export.pruning.in_llm import InLLMPruner

SPEC = llava.tiny(layers=8).spec.decoder
NAMES = [name for name in methods.names() if methods.load(name).in_llm]
CASES = [
    *(
        (name, {}, stage)
        for name in NAMES
        for stage in range(min(2, len(methods.load(name).in_llm.prune_layers(SPEC))))
    ),
    ("sparsevlm", {"version": "2", "heads": "2"}, 1),
]
OFTEN = (*METHODS, "feather")  # of two layers
LAYOUTS = [(5, -64, 9), (3, -30, 4, -64, 6), (-9, 1), (2, -20, 150)]
each_case = pytest.mark.parametrize(("name", "options", "stage"), CASES, ids=str)
exported = pytest.mark.parametrize(
    ("name", "options", "stage"),
    often([c for c in CASES if c[:2] != ("sparsevlm", {}) or not c[2]], OFTEN),
    ids=str,
)
first_cut = pytest.mark.parametrize("name", NAMES)


def load(name: str, options: dict[str, str]) -> InLLMPruner:
    return methods.load(name, options).in_llm


def prompts(here, seeds, **changes):
    for seed in seeds:
        keep = (1, 2, 9, 16, 40, 64)[seed % 6]
        layout = LAYOUTS[seed % len(LAYOUTS)]
        feeds = here.prompt(seed, keep, layout, **changes)
        feeds["carried.raters"] = torch.zeros_like(feeds["hidden"][..., 0])
        feeds["carried.raters"][:, -layout[-1] :] = 1
        yield keep, feeds


def flattened(feeds):
    return {key: torch.full_like(x, 0.5) if x.ndim == 3 else x for key, x in feeds.items()}


def check(method: InLLMPruner, feeds, found, keep: int) -> None:
    """Text stays, and ``keep`` tokens of each image where the method ``fills``; clusters are extra.

    All rows that stay move to the front unchanged.
    """
    (count,), kept, size = found["count"].tolist(), found["kept"][0], feeds["image"].shape[1]
    assert found["tokens"].shape == feeds["hidden"].shape and kept.shape == (size,)
    assert found["tokens"].isfinite().all() and (kept[count:] == -1).all()
    rows = kept[:count][kept[:count] >= 0]
    assert (rows.diff() > 0).all()
    assert torch.equal(found["tokens"][0, torch.where(kept >= 0)[0]], feeds["hidden"][0, rows])
    image = feeds["image"][0]
    assert [i for i in rows.tolist() if image[i] < 0] == torch.where(image < 0)[0].tolist()
    clusters = 0
    for number in range(int(image.max()) + 1):
        total = int((image == number).sum())
        assert (image[rows] == number).sum() == min(keep, total) or not method.fills
        if method.merges and method.version == "1" and total > keep:
            clusters += int((int((total - keep) * 0.3) + 1) / 10) + 1
    assert count == len(rows) + clusters
    assert len(rows) > (image < 0).sum()


@each_case
def test_rows_that_stay(model, name, options, stage):
    method = load(name, options)
    here = model(method)
    for keep, feeds in prompts(here, range(12)):
        check(method, feeds, here(feeds, stage), keep)
        check(method, flattened(feeds), here(flattened(feeds), stage), keep)


@exported
def test_onnxruntime_keeps_what_torch_keeps(model, name, options, stage, tmp_path):
    here = model(load(name, options))
    session = here.session(tmp_path / "pruner.onnx", stage)
    for seed, (_, feeds) in enumerate(prompts(here, range(18))):
        feeds = feeds if seed < 12 else flattened(feeds)
        ours, theirs = here(feeds, stage), session(feeds)
        assert torch.equal(ours["kept"], theirs["kept"]) and torch.equal(ours["count"], theirs["count"]), seed
        assert all(
            (ours[key] - theirs[key]).abs().max() < 1e-5 for key in ours if ours[key].is_floating_point()
        )


@pytest.mark.parametrize("name", often(NAMES))
def test_nothing_overflows_in_half_precision(model, name, tmp_path):
    method = load(name, {})
    here = model(method)
    session = here.session(tmp_path / "pruner.onnx", dtype="float16")
    for scale in (1, 200):
        for keep, feeds in prompts(here, range(6), dtype="float16"):
            large = {key: x * scale if x.ndim == 3 else x for key, x in feeds.items()}
            check(method, large, session(large), keep)
            check(method, flattened(large), session(flattened(large)), keep)


@first_cut
def test_the_question_counts_where_a_method_says_so(model, name):
    """A method that ``reads_question`` keeps other tokens with other text behind the image; others do not."""
    here, changed = model(load(name, {})), False
    for seed in range(4):
        feeds = here.prompt(seed)
        size = feeds["image"].shape[1]
        behind = torch.arange(size)[:, None] >= size - 9  # the layout's last text
        other = here.prompt(seed + 100)
        asked = {key: torch.where(behind, other[key], x) if x.ndim == 3 else x for key, x in feeds.items()}
        changed |= here.left(feeds) != here.left(asked)
    assert changed == methods.load(name).reads_question


@each_case
def test_images_have_budgets_of_their_own(model, name, options, stage):
    method = load(name, options)
    if not method.fills:
        pytest.skip("the number depends on the image")
    here = model(method)
    feeds = next(prompts(here, [1]))[1]
    feeds["keep"] = torch.where(feeds["image"] == 0, 5, 20) * (feeds["image"] >= 0)
    rows = here.left(feeds, stage)
    image = feeds["image"][0]
    assert [sum(image[i] == number for i in rows if i >= 0) for number in (0, 1)] == [5, 20]

"""The selection equals that of the published implementations.

The vectors are those of ``tests/golden``, whose README says how they were made.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from foveate.export import methods
from foveate.export.pruning.method import Method

FOLDER = Path(__file__).parents[1] / "golden"
ELSEWHERE = (  # what is fed besides: test_ocvtp.py, test_golden_in_llm.py
    *("ocvtp", "fastv", "feather", "pyramiddrop"),
)
CASES = sorted(
    path.relative_to(FOLDER).with_suffix("").as_posix()
    for path in FOLDER.glob("*/[0-9][0-9].json")
    if path.parent.name not in ELSEWHERE
)
OPTIONS = {  # a sidecar's hyper-parameters as options; a method that is not here has none
    "cdpruner": lambda given, rows: {"theta": given["theta"]},
    "hiprune": lambda given, rows: {"alpha": given["alpha"], "layer": given["object_layer_1based"] - 1},
    "holov": lambda given, rows: {"runs": given["num_patches"], "alpha": given["alpha"]},
    "trim": lambda given, rows: {"auto": given["ratio"] < 0},
    "vispruner": lambda given, rows: {"ratio": given["important_ratio"], "step": given["prune_step"]},
    "vscan": lambda given, rows: {
        "windows": rows // given["window"],
        "local": 1 - given["global_ratio"],
        "layer": given["shallow_layer_index"],
    },
}
ROWS = {  # where rows stand, for methods whose rows are not just patches
    "trim": lambda arrays: [*arrays["expected_kept"][0], -1],
    "visionzip": lambda arrays: [-1, *arrays["expected_kept"][0], *arrays["expected_context_targets"][0]],
}
HEADS = 4  # of the bench's vision encoder
DEPTH = 23  # CLIP ViT-L as LLaVA cuts it: layers are named as in the publications


def read(case: str) -> tuple[Method, dict[str, np.ndarray]]:
    """The method with the options of the case, and the arrays of the case."""
    name, given = case.split("/")[0], json.loads((FOLDER / f"{case}.json").read_text())["hyperparameters"]
    with np.load(FOLDER / f"{case}.npz") as file:
        arrays = dict(file)
    options = OPTIONS.get(name, lambda *_: {})(given, int(arrays["grid_h"]))
    return methods.load(name, {key: str(value) for key, value in options.items()}), arrays


def place(bench, arrays: dict[str, np.ndarray]):
    """A bench of the case's sizes."""
    widths = {name: array.shape[-1] for name, array in arrays.items() if array.ndim}
    grid = int(arrays["grid_h"]), int(arrays["grid_w"])
    vision_width = max(widths.get("features", 32), HEADS * widths.get("keys", 1))
    here = bench(grid, width=widths.get("projected", 48), vision_width=vision_width)
    object.__setattr__(here.spec.vision, "joint_size", widths.get("clip_image"))
    object.__setattr__(here.spec.vision, "depth", DEPTH)
    return here


def feeds(here, method: Method, arrays: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    """Return the case's arrays under the names of the graph's inputs.

    Tokens that a case lacks are random. Features that are narrower than the heads together get columns of
    zeros.
    """
    found = {}
    for name, value in here.inputs(method, seed=0).items():
        offer, _, layer = name.partition(".")
        key = offer if layer in ("", str(DEPTH - 1)) else f"{offer}_shallow"
        assert key in arrays or name == method.source, f"the case has no {key}"
        given = torch.from_numpy(arrays[key]) if key in arrays else value
        found[name] = F.pad(given, (0, value.shape[-1] - given.shape[-1])) if "feature" in name else given
    return found


@pytest.fixture(scope="module")
def sessions():
    return {}


@pytest.mark.parametrize("case", CASES)
def test_same_as_published(bench, sessions, tmp_path, case):
    method, arrays = read(case)
    here = place(bench, arrays)
    inputs = feeds(here, method, arrays)
    key = str((method, here.grid, [(name, value.shape[-1]) for name, value in inputs.items()]))
    if key not in sessions:
        sessions[key] = here.session(method, tmp_path)
    expected = ROWS.get(method.name, lambda arrays: arrays["expected_kept"][0])(arrays)
    keep = budget(method, arrays)
    tokens, kept, count, *owner = sessions[key](inputs, keep)
    number = int(count)
    assert kept[0, :number].tolist() == list(expected)
    assert (kept[0, number:] == -1).all() and kept.shape == (1, keep)
    assert method.merges or torch.equal(tokens[0, :number], inputs[method.source][0, kept[0, :number]])
    if "expected_tokens" in arrays:
        rows = in_raster_order(arrays)
        np.testing.assert_allclose(tokens[0, :number, : rows.shape[-1]].numpy(), rows, rtol=0, atol=1e-4)
    if "expected_assign" in arrays:
        others = np.setdiff1d(np.arange(here.size), expected)
        first = number - arrays["expected_context_targets"].shape[1] if method.name == "visionzip" else 0
        assert owner[0][0, others].tolist() == (arrays["expected_assign"][0] + first).tolist()


def budget(method: Method, arrays: dict[str, np.ndarray]) -> int:
    """``keep`` counts rows: trim's mean is one, and its automatic ratio must stop by itself."""
    keep = int(arrays["keep"])
    if method.name == "trim":
        return 2 * keep if method.auto else keep + 1
    return keep


def in_raster_order(arrays: dict[str, np.ndarray]) -> np.ndarray:
    """``expected_tokens [R,D]`` as our graphs order them: by position, without rows of padding."""
    tokens = arrays["expected_tokens"][0]
    if "expected_order" not in arrays:
        return tokens
    order = arrays["expected_order"][0]
    return tokens[np.argsort(order)[(order < 0).sum() :]]


def test_there_are_cases_for_every_method_with_published_code():
    assert {case.split("/")[0] for case in CASES} >= set(OPTIONS) | {"divprune", "visionzip"}

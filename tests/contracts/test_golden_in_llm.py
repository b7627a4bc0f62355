"""Rows that in-LLM pruners keep are those of the published implementations (``tests/golden``).

Every stage of every case goes through the exported pruner graph, with the case's own norm, query and key
weights.
"""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx_ir as ir
import pytest
import torch

from foveate.engines.ort.backend import onnxruntime
from foveate.export import methods
from foveate.export.graphs import trace
from foveate.export.graphs.llm import language_graphs
from foveate.export.networks.decoder import rope_tables
from foveate.export.pruning.in_llm import InLLMPruner
from foveate.export.spec import DecoderSpec

FOLDER = Path(__file__).parents[1] / "golden"
OPTIONS = {
    "fastv": lambda given: {"layer": given["K"]},
    "feather": lambda given: {"layers": given["pruning_layers"], "stride": given["stride"]},
    "pyramiddrop": lambda given: {"layers": given["layer_list"]},
}
CASES = sorted(f"{name}/{path.stem}" for name in OPTIONS for path in (FOLDER / name).glob("[0-9][0-9].json"))
MODELS: dict[str, ir.Model] = {}


def read(case: str) -> tuple[InLLMPruner, dict[str, np.ndarray]]:
    name = case.split("/")[0]
    given = json.loads((FOLDER / f"{case}.json").read_text())["hyperparameters"]
    text = {
        key: ",".join(map(str, v)) if isinstance(v, list) else str(v)
        for key, v in OPTIONS[name](given).items()
    }
    with np.load(FOLDER / f"{case}.npz") as file:
        return methods.load(name, text), dict(file)


def decoder_spec(arrays: dict[str, np.ndarray]) -> DecoderSpec:
    heads, kv_heads = int(arrays["num_heads"]), int(arrays["num_kv_heads"])
    width = arrays["hidden"].shape[-1]
    dim = arrays["wq"].shape[0] // heads
    theta = float(arrays.get("rope_theta", 1e4))
    return DecoderSpec(
        width, 64, 64, heads, kv_heads, dim, 100, float(arrays["rms_norm_eps"]), theta, 1024, False
    )


def pruner(method: InLLMPruner, stage: int, arrays: dict[str, np.ndarray]) -> onnxruntime.InferenceSession:
    """The exported graph of a stage with the weights of the case; graphs of one form are traced once."""
    spec = decoder_spec(arrays)
    key = str((method, stage, spec))
    if key not in MODELS:
        decoder = SimpleNamespace(spec=spec, layers=torch.nn.ModuleList())
        parts = SimpleNamespace(decoder=decoder, spec=SimpleNamespace(decoder=spec))
        parts.decoder = torch.nn.Module()
        parts.decoder.spec = spec
        graph = next(g for g in language_graphs(parts, method) if g.spec.name == f"pruner.{stage}")
        MODELS[key] = trace.trace(graph, "float32")
    model = MODELS[key].clone()
    suffix = f"_stage{stage + 1}" if stage else ""
    cos, sin = rope_tables(spec)
    values = {
        "input_layernorm.weight": arrays[f"norm_weight{suffix}"],
        "self_attn.q_proj.weight": arrays[f"wq{suffix}"].T.copy(),
        "self_attn.k_proj.weight": arrays[f"wk{suffix}"].T.copy(),
        "rope_cos": cos.numpy(),
        "rope_sin": sin.numpy(),
    }
    for name, value in model.graph.initializers.items():
        if value.const_value is None:
            value.const_value = ir.tensor(
                next(v for end, v in values.items() if name.endswith(end)), name=name
            )
    return onnxruntime.InferenceSession(
        ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"]
    )


def feeds(arrays: dict[str, np.ndarray], stage: int, patches: np.ndarray, keep: int) -> dict[str, np.ndarray]:
    suffix = f"_stage{stage + 1}" if stage else ""
    hidden, start = arrays[f"hidden{suffix}"], int(arrays["image_start"])
    patch = np.full((1, hidden.shape[1]), -1)
    patch[0, start : start + len(patches)] = patches
    visual = patch >= 0
    return {
        "hidden": hidden,
        "scored": hidden,
        "image": np.where(visual, 0, -1),
        "patch": patch,
        "columns": np.where(visual, int(arrays["grid_w"]), 1),
        "entered": np.where(visual, int(arrays["image_len"]), 0),
        "position_ids": arrays.get(f"position_ids{suffix}", np.zeros_like(patch)),
        "keep": np.where(visual, keep, 0),
    }


@pytest.mark.parametrize("case", CASES)
def test_same_as_published(case):
    method, arrays = read(case)
    stages = len(method.prune_layers(decoder_spec(arrays)))
    patches = np.arange(int(arrays["image_len"]))
    for stage in range(stages):
        session = pruner(method, stage, arrays)
        keep = int(arrays["keep_per_stage"][stage] if "keep_per_stage" in arrays else arrays["keep"])
        given = feeds(arrays, stage, patches, keep)
        tokens, kept, count = session.run(None, {i.name: given[i.name] for i in session.get_inputs()})[:3]
        rows = kept[0, : int(count[0])]
        np.testing.assert_array_equal(tokens[0, : len(rows)], given["hidden"][0, rows])
        assert (kept[0, len(rows) :] == -1).all()
        text = np.flatnonzero(given["image"][0] < 0)
        np.testing.assert_array_equal(np.intersect1d(rows, text), text)
        patches = given["patch"][0, rows][given["image"][0, rows] >= 0]
        expected = arrays.get(f"expected_kept_stage{stage + 1}", arrays["expected_kept"])
        assert patches.tolist() == expected[0].tolist(), stage
    assert patches.tolist() == arrays["expected_kept"][0].tolist()


def test_there_are_cases_of_every_method():
    assert {case.split("/")[0] for case in CASES} == set(OPTIONS)
    assert len(CASES) >= 16

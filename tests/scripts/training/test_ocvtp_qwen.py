"""Training of OC-VTP's pruner for a tower with images of any size: features, and a few steps."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from qwen import SPECIAL
from safetensors import safe_open
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, Qwen2VLImageProcessorPil
from transformers.vision_utils import get_vision_window_index

from foveate.calib.scenes.questions import make_scene
from foveate.engines.errors import UserError
from foveate.export import methods, models
from foveate.export.build import main as build
from foveate.export.checkpoints.random_weights import byte_tokenizer
from foveate.export.graphs.assemble import assemble
from foveate.export.other_checkpoints import pruner_weights
from training.ocvtp.features import FIRST_SCENE, collect
from training.ocvtp.train import main

SCRIPTS = Path(__file__).parents[3] / "scripts"
SMALL = ["--count", "7", "--epochs", "2", "--batch", "3", "--slots", "3", "5", "--validation-slots", "4"]
SMALL += ["--train-share", "0.6", "--decoder-layers", "1", "--decoder-inner", "32", "--threads", "1"]
SMALL += ["--side", "6"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    """Return a random Qwen2.5-VL with windows of 2 x 2 tokens of 8 x 8 pixels and three layers.

    The pruner reads the second layer.
    """
    path = tmp_path_factory.mktemp("qwen")
    text = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1, "num_attention_heads": 4}
    text |= {"num_key_value_heads": 2, "vocab_size": 320, "max_position_embeddings": 512}
    text |= {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]}}
    vision = {"hidden_size": 32, "intermediate_size": 48, "depth": 3, "num_heads": 2, "patch_size": 4}
    vision |= {
        "window_size": 16,
        "fullatt_block_indexes": [2],
        "out_hidden_size": 64,
        "initializer_range": 0.2,
    }
    torch.manual_seed(0)
    config = Qwen2_5_VLConfig(text_config=text, vision_config=vision, image_token_id=5, video_token_id=6)
    Qwen2_5_VLForConditionalGeneration(config).save_pretrained(path)
    size = {"shortest_edge": 256, "longest_edge": 96 * 96}
    Qwen2VLImageProcessorPil(patch_size=4, size=size).save_pretrained(path)
    special = {name: number for number, name in enumerate(SPECIAL)}
    (path / "tokenizer.json").write_bytes(byte_tokenizer(320, special))
    return path


def collected(checkpoint: Path, work: Path, **options):
    return collect(str(checkpoint), None, 2, None, work, deadline=math.inf, **options)


def test_features_are_those_of_transformers_in_raster_order(checkpoint, tmp_path):
    table, grid = collected(checkpoint, tmp_path, side=6)
    assert table.shape == (2, 36, 32) and grid == (6, 6)
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(checkpoint, dtype=torch.float32).eval()
    found = []
    model.model.visual.blocks[1].register_forward_hook(lambda block, given, out: found.append(out))
    image = make_scene(FIRST_SCENE).image.resize((48, 48), 3)
    pixels = Qwen2VLImageProcessorPil.from_pretrained(checkpoint)(image, return_tensors="pt")
    with torch.no_grad():
        model.model.visual(pixels["pixel_values"], grid_thw=pixels["image_grid_thw"])
    order, _ = get_vision_window_index(pixels["image_grid_thw"], 2, 16, 4)
    tokens = found[0].reshape(36, 4, 32).mean(1)[torch.as_tensor(order).argsort()]
    np.testing.assert_allclose(table[0], tokens.numpy(), rtol=2e-3, atol=2e-3)


def test_a_side_that_does_not_fit_is_refused(checkpoint, tmp_path):
    with pytest.raises(UserError, match="got 13 tokens, expected 2 to 12"):
        collected(checkpoint, tmp_path, side=13)
    with pytest.raises(UserError, match="have a fixed size"):
        collected(SCRIPTS / "shapes", tmp_path, side=6)
    collected(checkpoint, tmp_path, side=6)
    with pytest.raises(UserError, match="of another layer"):
        collected(checkpoint, tmp_path, side=4)


def test_a_trained_pruner_fits_and_the_method_is_refused_without_one(checkpoint, tmp_path):
    parts, method = models.load(str(checkpoint)), methods.load("ocvtp")
    with pytest.raises(UserError, match=r"ocvtp has no pruner for .* train one with scripts/train_ocvtp.py"):
        pruner_weights.joined(parts, method)
    main(["--model", str(checkpoint), "--work", str(tmp_path), *SMALL])
    trained = tmp_path / "ocvtp.safetensors"
    joined = pruner_weights.joined(parts, method, str(trained))
    pruner = next(graph for graph in assemble(parts, method) if graph.spec.name == "pruner")
    assert "hidden.1" in [tensor.name for tensor in pruner.spec.inputs]
    with safe_open(trained, "pt") as file:
        assert file.metadata()["side"] == "6"
        learnt = file.get_tensor("aggregat.proj_k.weight")
    assert torch.equal(joined.weights.get("pruner.aggregat.proj_k.weight"), learnt.T)


@pytest.mark.slow
def test_a_bundle_with_it(checkpoint, tmp_path):
    from foveate.runtime.pipeline import Pipeline

    main(["--model", str(checkpoint), "--work", str(tmp_path), *SMALL])
    out = tmp_path / "bundle"
    command = [
        "--model",
        str(checkpoint),
        "--method",
        "ocvtp",
        "--pruner",
        str(tmp_path / "ocvtp.safetensors"),
    ]
    assert build([*command, "--precision", "fp32", "--dialects", "ort", "--out", str(out)]) == 0
    image = make_scene(1).image.resize((90, 60))
    answer = Pipeline.load(out).generate(image, "What?", keep=7, max_new_tokens=2)
    assert len(answer.kept[0]) == 7 and answer.kept[0].max() < 11 * 8

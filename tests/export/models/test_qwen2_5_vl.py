"""Qwen2.5-VL: true sizes, the largest image, and what is refused."""

from __future__ import annotations

import pytest
from graph_shapes import shape

from foveate.engines.errors import UserError
from foveate.export import methods, models
from foveate.export.build import main
from foveate.export.checkpoints.random_weights import Dummy
from foveate.export.graphs.assemble import assemble
from foveate.export.models import qwen2_5_vl
from foveate.runtime.bundle.loading import load
from foveate.runtime.cli import inspect
from foveate.runtime.images import processor


@pytest.mark.parametrize(
    ("name", "width", "layers", "kv_heads", "tied"),
    [("qwen2.5-vl-3b", 2048, 36, 2, True), ("qwen2.5-vl-7b", 3584, 28, 4, False)],
)
def test_qwen_in_its_true_size(name, width, layers, kv_heads, tied):
    parts = models.load(name, load_format="dummy")
    decoder = parts.spec.decoder
    assert (decoder.hidden_size, decoder.num_layers, decoder.num_kv_heads) == (width, layers, kv_heads)
    assert (decoder.tied, decoder.rope_sections, decoder.attention_bias) == (tied, (16, 24, 24), True)
    graphs = assemble(parts, methods.load("sppruner"))
    assert shape(graphs, "vision_encoder", "pixel_values") == [(1, 3840), 4, 1176]
    assert shape(graphs, "vision_encoder", "slots") == [(1, 960), 16]
    assert shape(graphs, "vision_encoder", "received_attention.31") == [1, (1, 3840)]
    assert shape(graphs, "llm", "position_ids") == [3, 1, (1, 32768)]
    hiprune, vscan = (methods.load(each).taps(parts.spec) for each in ("hiprune", "vscan"))
    assert hiprune == ("received_attention.15", "received_attention.31")
    assert vscan == ("received_attention.7", "received_attention.31")


def test_the_largest_image_is_one_that_every_engine_sorts_unless_asked_otherwise():
    usual = models.load("qwen2.5-vl-7b", load_format="dummy")
    assert usual.image["max_pixels"] == 3840 * 28**2 and usual.spec.vision.image_tokens == 3840
    largest = models.load("qwen2.5-vl-7b", load_format="dummy", max_pixels=12845056)
    assert largest.image["max_pixels"] == 12845056 and largest.spec.vision.image_tokens == 16384
    for wrong in (0, 1567, 12845057):
        with pytest.raises(UserError, match=f"got {wrong}, expected 3136 to 12845056"):
            models.load("qwen2.5-vl-7b", load_format="dummy", max_pixels=wrong)
    with pytest.raises(UserError, match="have a fixed size"):
        models.load("llava-v1.6-vicuna-7b", load_format="dummy", max_pixels=12845056)


@pytest.mark.slow
def test_max_pixels_of_the_command(tmp_path, monkeypatch):
    """An image above it is scaled down; the graphs take no larger one."""
    monkeypatch.setattr(qwen2_5_vl, "CONFIGS", {"qwen2.5-vl-3b": small_qwen()})
    command = "--model qwen2.5-vl-3b --method sppruner --load-format dummy --no-compile --dialects ort"
    assert main([*command.split(), "--max-pixels", "78400", "--out", str(tmp_path / "b")]) == 0
    bundle = load(tmp_path / "b")
    assert bundle.manifest.image["max_pixels"] == 78400 and bundle.manifest.num_visual_tokens == 100
    assert bundle.manifest.spec("pruner", "ort").input("keep").value.max == 100
    assert processor.image_processor(bundle.manifest.image).token_layout((2000, 1000), (1, 1)).total == 7 * 14
    facts = inspect.describe(bundle)
    assert facts["visual_tokens"] == 100 and facts["max_pixels"] == 78400


def test_a_build_that_an_engine_could_not_sort_is_refused(tmp_path):
    command = "--model qwen2.5-vl-3b --method sppruner --load-format dummy --max-pixels 12845056"
    with pytest.raises(UserError, match="sort at most 3840"):
        main([*command.split(), "--dialects", "native", "--out", str(tmp_path / "bundle")])


def small_qwen() -> dict:
    """A config of which little is computed; the patches are the true ones."""
    tiny = qwen2_5_vl.CONFIGS["qwen2.5-vl-3b"]
    vision = {"hidden_size": 32, "intermediate_size": 48, "depth": 2, "num_heads": 2, "out_hidden_size": 64}
    vision = tiny["vision_config"] | vision | {"fullatt_block_indexes": [1]}
    decoder = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1, "num_attention_heads": 4}
    decoder |= {"rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]}, "vision_config": vision}
    return tiny | decoder


def test_qwen_takes_no_clip_and_no_layer_that_sees_windows():
    with pytest.raises(UserError, match="takes no CLIP"):
        qwen2_5_vl.load(Dummy("here", {}), clip="openai/clip")
    with pytest.raises(UserError, match="only 1 attend to the whole image"):
        assemble(qwen2_5_vl.tiny(), methods.load("hiprune", {"layer": "0"}))

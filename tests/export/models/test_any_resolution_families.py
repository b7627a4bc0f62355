"""LLaVA-NeXT and Qwen2.5-VL: true sizes, checkpoints' files, and what is refused."""

from __future__ import annotations

import io

import numpy as np
import pytest

from foveate.engines.errors import UserError
from foveate.engines.spec import Symbol
from foveate.export import methods, models
from foveate.export.build import main
from foveate.export.bundling import precision
from foveate.export.checkpoints.random_weights import Dummy
from foveate.export.graphs.assemble import assemble
from foveate.export.models import llava, llava_next, qwen2_5_vl
from foveate.export.settings import image_processor
from foveate.runtime.bundle.loading import load
from foveate.runtime.cli import inspect
from foveate.runtime.images import processor


def shape(graphs, graph, name):
    spec = next(each.spec for each in graphs if each.spec.name == graph)
    found = next(t for t in (*spec.inputs, *spec.outputs) if t.name == name)
    return [(d.min, d.max) if isinstance(d, Symbol) else d for d in found.shape]


@pytest.mark.parametrize(
    ("name", "width", "layers", "kv_heads"),
    [
        ("llava-v1.6-vicuna-7b", 4096, 32, 32),
        ("llava-v1.6-vicuna-13b", 5120, 40, 40),
        ("llava-v1.6-mistral-7b", 4096, 32, 8),
    ],
)
def test_llava_next_in_its_true_size(name, width, layers, kv_heads):
    parts = models.load(name, load_format="dummy")
    decoder = parts.spec.decoder
    assert (decoder.hidden_size, decoder.num_layers, decoder.num_kv_heads) == (width, layers, kv_heads)
    graphs = assemble(parts, methods.load("sppruner"))
    assert shape(graphs, "vision_encoder", "pixel_values") == [(1, 5), 3, 336, 336]
    assert shape(graphs, "pruner", "view") == [(1, 24), (1, 24)]
    assert shape(graphs, "pruner", "projected") == [(1, 5), 576, width]
    whole = assemble(parts, methods.load("divprune"))
    assert shape(whole, "pruner", "view") == [1, (1, 2880)]
    assert np.load(io.BytesIO(parts.files["image_newline.npy"])).shape == (width,)


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


def test_dialects_whose_engines_cannot_sort_so_many_tokens_are_left_out():
    int4 = precision.Precision("int4")
    assert precision.dialects(int4, None, False, sorts=3840) == (["native", "ort", "primitive"], {})
    found, left_out = precision.dialects(int4, None, False, sorts=3841)
    assert found == ["ort"] and "sort at most 3840" in left_out["native"]
    with pytest.raises(UserError, match=r"cannot have the dialect native \| an image may have 3841 tokens"):
        precision.dialects(int4, ["native"], False, sorts=3841)


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


def test_a_build_by_name_without_a_checkpoint(tmp_path, monkeypatch, capsys):
    """Build as the command does, with a small config in place of the true one."""
    config, _ = llava.tiny_configs(image_size=28, max_positions=512)
    config |= {"model_type": "llava_next", "image_grid_pinpoints": [[28, 56], [56, 28]]}
    monkeypatch.setitem(llava_next.CONFIGS, "llava-v1.6-vicuna-7b", config)
    out = tmp_path / "bundle"
    command = "--model llava-v1.6-vicuna-7b --method sppruner --load-format dummy --dialects ort --no-compile"
    assert main([*command.split(), "--out", str(out)]) == 0
    assert (out / "pruner.ort.onnx").is_file() and (out / "image_newline.npy").is_file()


def test_canvases_that_are_no_tiles_are_refused():
    config = llava_next.CONFIGS["llava-v1.6-vicuna-7b"] | {"image_grid_pinpoints": [[336, 500]]}
    with pytest.raises(UserError, match="expected multiples of 336"):
        llava_next.load(Dummy("odd", config))


class Files(Dummy):
    """A checkpoint that has nothing but a ``preprocessor_config.json``."""

    load_format = "auto"

    def __init__(self, values):
        super().__init__("here", {})
        self.values = values

    def json(self, name):
        return self.values if name == "preprocessor_config.json" else None


@pytest.mark.parametrize(
    "change",
    [
        {"image_grid_pinpoints": [[336, 672]]},
        {"size": {"shortest_edge": 224}},
        {"crop_size": {"height": 224, "width": 224}},
    ],
)
def test_a_processor_that_cuts_otherwise_than_the_model_is_refused(change):
    fine = {
        "image_processor_type": "LlavaNextImageProcessor",
        "size": {"shortest_edge": 336},
        "crop_size": {"height": 336, "width": 336},
        "image_grid_pinpoints": [[336, 672], [672, 336]],
    }
    pinpoints = [[336, 672], [672, 336]]
    settings = image_processor.tile_settings(Files(fine), 336, pinpoints)
    assert settings["tile"] == 336 and settings["pinpoints"] == pinpoints and "crop" not in settings
    with pytest.raises(UserError, match="image processor and model disagree"):
        image_processor.tile_settings(Files(fine | change), 336, pinpoints)


def test_an_image_processor_of_another_kind_is_refused():
    with pytest.raises(UserError, match="got SiglipImageProcessor, expected LlavaNextImageProcessor"):
        image_processor.tile_settings(
            Files({"image_processor_type": "SiglipImageProcessor"}), 336, [[336, 672]]
        )
    with pytest.raises(UserError, match="got CLIPImageProcessor, expected Qwen2VLImageProcessor"):
        image_processor.window_settings(Files({"image_processor_type": "CLIPImageProcessor"}), 14, 2, 2, 4, 2)
    with pytest.raises(UserError, match="image processor and vision encoder disagree"):
        image_processor.window_settings(Files({"patch_size": 16}), 14, 2, 2, 4, 2)


def test_qwen_takes_no_clip_and_no_layer_that_sees_windows():
    with pytest.raises(UserError, match="takes no CLIP"):
        qwen2_5_vl.load(Dummy("here", {}), clip="openai/clip")
    with pytest.raises(UserError, match="only 1 attend to the whole image"):
        assemble(qwen2_5_vl.tiny(), methods.load("hiprune", {"layer": "0"}))

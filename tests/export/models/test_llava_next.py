"""LLaVA-NeXT: true sizes, a build by name, and what is refused."""

from __future__ import annotations

import io

import numpy as np
import pytest
from graph_shapes import shape

from foveate.engines.errors import UserError
from foveate.export import methods, models
from foveate.export.build import main
from foveate.export.checkpoints.random_weights import Dummy
from foveate.export.graphs.assemble import assemble
from foveate.export.models import llava, llava_next


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

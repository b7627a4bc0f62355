"""Numbers too large for float16: the build sees where, and writes no graph that would overflow."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import load_file, save_file

from foveate.engines.errors import UserError
from foveate.export import build as build_module
from foveate.export.bundling.reference import ranges as ranges_module
from foveate.export.bundling.reference.ranges import Ranges
from foveate.export.networks.decoder import Decoder, DecoderLayer, rope_of, rope_tables
from foveate.export.spec import DecoderSpec
from foveate.runtime.bundle.loading import write_manifest
from foveate.runtime.bundle.manifest import Manifest
from foveate.runtime.cli import main
from foveate.runtime.overflow import FLOAT16_MAX

Scale = Callable[..., Path]


@pytest.fixture(scope="module")
def scaled(tmp_path_factory: pytest.TempPathFactory, save_checkpoint: Callable[..., None]) -> Scale:
    """``scaled(name=factor)``: a random checkpoint whose weights of that name are so many times as large.

    A name is the end of the weight's name, with ``__`` for a dot.
    """
    root = tmp_path_factory.mktemp("hf")
    save_checkpoint(root / "plain")

    def make(**factors: float) -> Path:
        path = root / "-".join(f"{name}{factor:g}" for name, factor in factors.items())
        if not path.exists():
            shutil.copytree(root / "plain", path)
            weights = load_file(path / "model.safetensors")
            for ending, factor in factors.items():
                (name,) = (each for each in weights if each.endswith(ending.replace("__", ".") + ".weight"))
                weights[name] *= factor
            save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
        return path

    return make


def build(checkpoint: Path, out: Path, *more: str, dialects: str = "ort,primitive") -> int:
    arguments = ["--method", "none", "--dialects", dialects, "--no-compile", *more]
    return main(["build", "--model", str(checkpoint), "--out", str(out), *arguments])


def manifest(bundle: Path) -> Manifest:
    return Manifest.from_json(json.loads((bundle / "bundle.json").read_text()))


DOWN = "language_model__model__layers__0__mlp__down_proj"
UP = "language_model__model__layers__1__mlp__up_proj"
KEYS = "language_model__model__layers__1__self_attn__k_proj"
FC2 = "vision_tower__encoder__layers__1__mlp__fc2"


@pytest.mark.parametrize("precision", ["int4", "fp16"])
def test_a_graph_that_float16_cannot_hold_is_written_in_float32(scaled, tmp_path, capsys, precision):
    assert build(scaled(**{DOWN: 3e4}), tmp_path / "b", "--precision", precision) == 0
    said = capsys.readouterr().err
    assert "llm of primitive is written in float32: layer 0 of llm (mlp.down_proj, product) reaches" in said
    assert "float16 holds numbers up to 65504" in said and "vision_encoder" not in said
    entry = manifest(tmp_path / "b").dialects["primitive"]
    assert (entry.dtype, entry.widened) == ("float16", {"llm": "float32"})
    file = tmp_path / "b" / entry.files["llm"]
    onnx.checker.check_model(file, full_check=True)
    graph = onnx.load(file, load_external_data=False).graph
    floats = {v.type.tensor_type.elem_type for v in (*graph.input, *graph.output)} - {onnx.TensorProto.INT64}
    assert floats == {onnx.TensorProto.FLOAT16}
    for dialect in manifest(tmp_path / "b").dialects:  # the self-test compares with float32
        assert main(["compile", str(tmp_path / "b"), "--dialect", dialect]) == 0
        assert main(["check", str(tmp_path / "b")]) == 0
    capsys.readouterr()
    assert main(["inspect", str(tmp_path / "b")]) == 0
    told = capsys.readouterr().out
    assert "llm.primitive.onnx, float16 (float32 inside)" in told
    peak = max(each.value for each in manifest(tmp_path / "b").ranges["llm"])
    assert peak > 1e6 and f"largest value recorded {peak:.4g}, layer 0 of llm (mlp.down_proj" in told


def test_the_same_in_the_vision_encoder(scaled, tmp_path, capsys):
    checkpoint = scaled(**{FC2: 1e5, "multi_modal_projector__linear_1": 1e-3})
    assert build(checkpoint, tmp_path / "b", dialects="primitive") == 0
    assert "vision_encoder of primitive is written in float32: layer 1 of vision_encoder (mlp.fc2" in (
        capsys.readouterr().err
    )
    assert main(["compile", str(tmp_path / "b")]) == 0


def test_a_dialect_whose_caches_overflow_is_left_out(scaled, tmp_path, capsys, monkeypatch):
    compiled = []
    monkeypatch.setattr(build_module, "usable", lambda dialects: compiled.append(list(dialects)) or [])
    usual = ["--method", "none", "--out", str(tmp_path / "b")]
    assert main(["build", "--model", str(scaled(**{KEYS: 5e3})), *usual]) == 0
    assert compiled == [["ort"]]  # no target that takes nothing else is tried
    said = capsys.readouterr().err
    assert "the dialect primitive is left out: layer 1 of llm (self_attn, " in said
    assert set(manifest(tmp_path / "b").dialects) == {"ort"}
    assert not list((tmp_path / "b").glob("*.primitive.onnx"))
    assert main(["compile", str(tmp_path / "b")]) == 0


@pytest.mark.parametrize("dialects", ["primitive", "ort,primitive"])
def test_a_dialect_that_was_asked_for_by_name_is_not_left_out(scaled, tmp_path, capsys, dialects):
    assert build(scaled(**{KEYS: 5e3}), tmp_path / "none", dialects=dialects) == 1
    said = capsys.readouterr().err
    assert "the dialect primitive cannot hold what the model computes | layer 1 of llm" in said
    assert "--dialects ort" in said and not (tmp_path / "none").exists()


def test_no_dialect_is_left(scaled, tmp_path, capsys):
    """All dialects compute in float16 with fp16."""
    arguments = ["--method", "none", "--no-compile", "--precision", "fp16", "--out", str(tmp_path / "none")]
    assert main(["build", "--model", str(scaled(**{KEYS: 5e3})), *arguments]) == 1
    said = capsys.readouterr().err
    assert "no dialect of this bundle can hold what the model computes | layer 1 of llm" in said
    assert "--dialects ort" in said and not (tmp_path / "none").exists()


def test_the_overflow_of_a_float16_graph_is_explained(scaled, tmp_path, capsys, monkeypatch):
    """A bundle as earlier builds made it: its self-test named neither place nor cause."""
    monkeypatch.setattr(ranges_module, "MARGIN", 0.0)
    assert build(scaled(**{DOWN: 3e4}), tmp_path / "b") == 0
    capsys.readouterr()
    expected = (
        "float16 cannot hold what it computes: layer 0 of llm (mlp.down_proj, product) reaches"  # in int4
    )
    assert main(["compile", str(tmp_path / "b"), "--dialect", "primitive"]) == 1
    said = capsys.readouterr().err
    assert "the graph llm answers NaN or infinity (logits)" in said and expected in said
    assert "trying:" not in said and "doctor" not in said and "--dialect ort" in said
    assert main(["compile", str(tmp_path / "b"), "--dialect", "primitive", "--no-self-test"]) == 0
    capsys.readouterr()
    assert main(["check", str(tmp_path / "b"), "--json"]) == 1
    printed = capsys.readouterr()
    assert expected in printed.err
    document = json.loads(printed.out, parse_constant=pytest.fail)  # JSON has no NaN
    assert {each["not_finite"] for each in document["findings"] if each["answer"] == "logits"} == {"engine"}
    values = json.loads((tmp_path / "b" / "bundle.json").read_text())
    del values["ranges"]
    write_manifest(tmp_path / "b", values)
    assert main(["check", str(tmp_path / "b")]) == 1
    assert "this bundle is too old to tell" in capsys.readouterr().err


def test_infinity_in_float32_is_refused_with_its_layer(scaled, tmp_path, capsys):
    checkpoint = scaled(**{UP: 1e30, UP.replace("up_proj", "gate_proj"): 1e30})
    assert build(checkpoint, tmp_path / "b", "--precision", "fp32", dialects="ort") == 1
    said = capsys.readouterr().err
    assert "the checkpoint computes infinity in float32 in layer 1 of llm (mlp.down_proj, input)" in said
    assert not (tmp_path / "b").exists()


def test_a_weight_that_float16_cannot_hold_is_refused_by_name(scaled, tmp_path, capsys):
    assert build(scaled(**{UP: 1e6}), tmp_path / "b", "--precision", "fp16") == 1
    said = capsys.readouterr().err
    assert "llm.layers.1.mlp.up_proj.weight cannot be stored in float16" in said and "fp32" in said
    assert not (tmp_path / "b").exists()


def _layer() -> tuple[DecoderSpec, DecoderLayer]:
    spec = DecoderSpec(
        num_layers=1,
        hidden_size=32,
        intermediate_size=48,
        num_heads=4,
        num_kv_heads=2,
        head_dim=8,
        vocab_size=10,
        max_positions=16,
        rope_theta=10000.0,
        rms_norm_eps=1e-5,
        tied=False,
    )
    torch.manual_seed(0)
    layer = DecoderLayer(spec)
    for value in layer.parameters():
        value.data = torch.randn_like(value) * 0.2
    return spec, layer


@torch.inference_mode()
def _peaks(
    spec: DecoderSpec, layer: DecoderLayer, x: torch.Tensor
) -> tuple[dict[bool, tuple[str, float]], float]:
    """Place and size of the largest value at the edge and inside, and the largest attention score by hand."""
    rope = rope_of(spec, *rope_tables(spec), torch.arange(x.shape[1])[None])
    start, empty = torch.zeros(1, dtype=torch.int64), torch.zeros(1, 2, x.shape[1], 8)
    found = Ranges()
    with found.watch("llm", layer, layer=0, cached=True):
        _, keys, _ = layer(x, rope, start, Decoder.causal_mask(x.shape[1], x.shape[1], start), (empty, empty))
    entries = {each.edge: (each.at, each.value) for each in found.by_graph()["llm"]}
    queries = layer.self_attn.q_proj(layer.input_layernorm(x)).view(1, -1, 4, 8).transpose(1, 2)
    queries = torch.ops.foveate.rotary_embedding(queries, *rope)
    scores = queries @ keys.repeat_interleave(2, dim=1).transpose(2, 3) / 8**0.5
    return entries, float(scores.abs().max())


def test_places_are_named_and_sized_as_computed_by_hand():
    spec, layer = _layer()
    x = torch.randn(1, 7, 32)
    layer.self_attn.q_proj.weight *= 100
    layer.self_attn.k_proj.weight *= 100
    edge, score = _peaks(spec, layer, x)
    assert edge[True][0] == "self_attn, attention scores" and edge[True][1] == pytest.approx(score, rel=1e-3)
    layer.mlp.up_proj.weight *= 1000
    layer.mlp.down_proj.weight *= 1e-6
    with torch.inference_mode():
        inside, _ = _peaks(spec, layer, x)
    assert inside[False][0] in ("mlp.up_proj, product", "mlp.down_proj, input")
    x *= 1e5
    inside, _ = _peaks(spec, layer, x)
    assert inside[False] == ("input", pytest.approx(float(x.abs().max()), rel=1e-3))


def test_nan_is_refused_where_it_arises():
    spec, layer = _layer()
    layer.mlp.gate_proj.weight.data[3, 4] = np.nan
    with pytest.raises(UserError, match=r"NaN in float32 in layer 0 of llm \(mlp.gate_proj, product\)"):
        _peaks(spec, layer, torch.randn(1, 7, 32))


def test_half_of_float16_counts_as_too_much():
    found = Ranges()
    found.see("llm", "input", torch.tensor([FLOAT16_MAX / 2]))
    assert found.first_too_wide("llm", edge=False) is None
    found.see("llm", "input", torch.tensor([FLOAT16_MAX / 2 + 1]))
    assert found.first_too_wide("llm", edge=False).at == "input"

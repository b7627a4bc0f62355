"""Calibration on a tiny model collects what the runtime computes, and folding changes no answer."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from foveate.calib import samples
from foveate.calib.smoothing.fold import Smoothed
from foveate.calib.statistics import Statistics
from foveate.engines.errors import UserError
from foveate.export import build_bundle, methods
from foveate.export.build import build
from foveate.export.bundling.precision import Precision
from foveate.export.calibration import calibrate
from foveate.export.calibration.calibrate import Calibration, calibrated
from foveate.export.calibration.prompts import Stages, load_prompts
from foveate.export.checkpoints.module_weights import fill
from foveate.export.graphs.assemble import assemble
from foveate.export.models import llava
from foveate.export.networks.decoder import Decoder
from foveate.runtime import Pipeline
from foveate.runtime.cli import main
from foveate.runtime.compiling.compile import compile_bundle

COUNT = 3


def tiny(**options):
    return llava.tiny(layers=5, kv_heads=4, **options)


def pair():
    """Return a method that merges before the language model and prunes inside it.

    It prunes by the scores of a segment's first and of its last layer, and renumbers the rows.
    """
    return methods.load("vscan+feather", {"feather.layers": "1,4", "feather.position_mode": "compact"})


def collect(parts, method, out, graphs=None, *, precision="fp32", asked=None, progress=None):
    """``calibrated`` as ``build`` calls it: parts and statistics."""
    graphs = graphs or assemble(parts, method)
    root = out.with_name(f"{out.name}.building")
    root.mkdir()
    manifest = build_bundle.manifest("b", parts, method, graphs, Precision("fp32"))
    asked = asked or Calibration("scenes", COUNT)
    progress = progress or (lambda what, done, total: None)
    found = calibrated(parts, method, graphs, manifest, asked, Precision(precision), root, out, progress)
    assert not list(root.iterdir())
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("calibrated")


@pytest.fixture(scope="module")
def collected(folder):
    """Return statistics of ``pair``, and a bundle that was built with them.

    The model is cut once more between the pruners.
    """
    out = folder / "bundle"
    calibration = Calibration("scenes", COUNT)
    build(tiny(), pair(), out, precision="fp32", dialects=["ort"], calibration=calibration, llm_parts=4)
    return Statistics.load(folder / "bundle.statistics.safetensors")


def test_the_ranges_are_those_of_the_runtimes_own_cache(folder, collected):
    """The same samples through the bundle: its caches hold the same largest keys and values."""
    compile_bundle(folder / "bundle")
    pipe, largest = Pipeline.load(folder / "bundle"), {}
    for sample in samples.load("scenes", COUNT).items:
        chat = pipe.chat()
        chat.ask(sample.prompt, sample.image, max_new_tokens=1)
        lengths = [segment.cache.length for segment in chat._decoder.segments]
        assert len(lengths) == 4 and lengths == sorted(lengths, reverse=True)
        assert lengths[0] > lengths[1] == lengths[2] > lengths[3]
        for segment in chat._decoder.segments:
            for past, buffer in segment.cache.feeds().items():
                peak = np.abs(buffer.numpy()[0, :, : segment.cache.length]).max(1)
                largest[past] = np.maximum(largest.get(past, 0), peak)
    assert len(largest) == 2 * 5
    for layer in range(5):
        for found, kind in zip(collected.cache(layer), ("key", "value"), strict=True):
            np.testing.assert_allclose(found, largest[f"past.{layer}.{kind}"], rtol=1e-3, atol=1e-4)


def test_every_matrix_of_the_decoder_has_statistics(collected):
    parts = tiny()
    matrices = {
        f"llm.{path}": value.shape[0] for path, value in parts.decoder.named_parameters() if value.ndim == 2
    }
    assert len(matrices) == 5 * 7 + 1
    for name, inputs in matrices.items():
        found = collected.inputs(name)
        assert found.absmax.shape == found.mean_abs.shape == (inputs,)
        assert 0 < found.range <= found.absmax.max() * 1.0001
        assert (found.mean_abs <= found.absmax).all()
    for kind in ("awq", "smoothquant"):
        factors = collected.factors(kind)
        assert factors.keys() == {name for name in matrices if "layers" in name}
        assert all((value > 0).all() for value in factors.values())


def test_a_killed_run_goes_on_at_its_layer(folder, monkeypatch):
    """Also, a norm that a pruner reads keeps its scale: topv compares outputs of layer 1's second norm."""
    parts, method = tiny(), methods.load("topv")
    graphs, seen = assemble(parts, method), []
    folded, statistics = collect(parts, method, folder / "whole", graphs, precision="int8")
    whole = Statistics.load(folder / "whole.statistics.safetensors")

    def stop(what, done, total):
        if what == "calibrating layer 3":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        collect(parts, method, folder / "killed", graphs, progress=stop)
    partial = folder / "killed.statistics.safetensors.partial"
    assert partial.is_file()
    shutil.rmtree(folder / "killed.building")
    monkeypatch.setattr(Stages, "begin", None)  # the images are not looked at again
    again = collect(
        parts, method, folder / "killed", graphs, progress=lambda what, done, total: seen.append(what)
    )[1]
    assert [what for what in seen if what.startswith("calibrating layer")] == [
        "calibrating layer 3",
        "calibrating layer 4",
    ]
    assert not partial.exists()
    assert again.identity == whole.identity and again.tensors.keys() == whole.tensors.keys()
    for name, value in again.tensors.items():
        np.testing.assert_array_equal(value, whole.tensors[name], err_msg=name)

    norms = [f"llm.layers.{layer}.post_attention_layernorm.weight" for layer in (0, 1)]
    assert [torch.equal(folded.weights.get(name), parts.weights.get(name)) for name in norms] == [False, True]
    assert "llm.layers.1.mlp.up_proj.weight" not in whole.factors("awq")
    assert not statistics.factors(
        "smoothquant"
    )  # they are in the weights, and the ranges are those behind them
    name = "llm.layers.2.self_attn.q_proj.weight"
    expected = whole.inputs(name).absmax / whole.factors("smoothquant")[name]
    np.testing.assert_allclose(statistics.inputs(name).absmax, expected)
    assert statistics.inputs(name).range == pytest.approx(expected.max())


def test_statistics_that_fit_are_used_again_and_others_refused(folder, collected, monkeypatch):
    path = folder / "bundle.statistics.safetensors"
    monkeypatch.setattr(calibrate, "Stages", None)  # nothing is collected here
    for number, asked in enumerate((Calibration("scenes", COUNT, path), Calibration(statistics=path))):
        again = collect(tiny(), pair(), folder / f"again{number}", asked=asked)[1]
        assert again.identity == collected.identity
    for method, parts, words in (
        (methods.load("fastv"), tiny(), "of another method"),
        (pair(), tiny(hidden=64), "of another model"),
    ):
        with pytest.raises(UserError, match=words):
            collect(parts, method, folder / words.split()[-1], asked=Calibration(statistics=path))
    with pytest.raises(UserError, match="of another samples"):
        collect(tiny(), pair(), folder / "samples", asked=Calibration("scenes", COUNT - 1, path))
    for number, (place, words) in enumerate(
        ((folder / "none" / "kept", "there is no folder"), (folder, "it is a folder"))
    ):
        with pytest.raises(UserError, match=words):
            collect(tiny(), pair(), folder / f"place{number}", asked=Calibration("scenes", COUNT, place))


@pytest.mark.parametrize("facts", [None, {"facts": "{}"}])
def test_leftovers_of_another_version_are_not_read(tmp_path, facts):
    save_file({"length": np.array([1]), "hidden": np.zeros((1, 8), np.float32)}, tmp_path / "partial", facts)
    assert load_prompts(tmp_path / "partial") is None


@pytest.mark.parametrize("kv_heads", [4, 2])
def test_folded_factors_change_no_output(kv_heads):
    """Factors of every group that can have them; shared key heads leave v and o alone."""
    parts = llava.tiny(layers=2, kv_heads=kv_heads)
    rng, factors = np.random.default_rng(0), {}
    for layer in ("llm.layers.0.", "llm.layers.1."):
        for width, paths in (
            (128, ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")),
            (128, ("self_attn.o_proj",) if kv_heads == 4 else ()),
            (128, ("mlp.gate_proj", "mlp.up_proj")),
            (256, ("mlp.down_proj",)),
        ):
            value = np.exp(rng.normal(0, 2, width)).astype(np.float32)
            factors |= {f"{layer}{path}.weight": value for path in paths}
    found = [logits(parts.spec.decoder, w) for w in (parts.weights, Smoothed(parts.weights, factors))]
    torch.testing.assert_close(*found, atol=1e-5, rtol=1e-5)
    spoiled = dict(list(factors.items())[1:])  # one matrix of a group is forgotten
    broken = logits(parts.spec.decoder, Smoothed(parts.weights, spoiled))
    assert (broken - found[0]).abs().max() > 1e-2


def logits(spec, weights):
    with torch.device("meta"):
        decoder = Decoder(spec)
    fill(decoder, weights, "llm.")
    rows = torch.randn(1, 6, spec.hidden_size, generator=torch.Generator().manual_seed(0))
    past = [torch.zeros(1, spec.num_kv_heads, 6, spec.head_dim)] * (2 * spec.num_layers)
    zero = torch.zeros(1, dtype=torch.int64)
    return decoder(rows, torch.arange(6)[None], zero, zero + 5, *past)[0]


def test_the_verb_takes_samples_and_statistics(folder, collected, save_checkpoint, monkeypatch, capsys):
    save_checkpoint(folder / "hf")
    command = ["build", "--model", str(folder / "hf"), "--method", "vscan", "--no-compile"]
    command += ["--dialects", "ort", "--out", str(folder / "cli")]
    kept = folder / "bundle.statistics.safetensors"
    for more, words in (
        (["--statistics", str(kept)], "of another model"),
        (["--statistics", str(folder / "none")], "no such file"),
        (["--calibrate", str(folder / "nowhere")], "no calibration samples"),
    ):
        assert main([*command, *more]) == 1
        assert words in capsys.readouterr().err
    assert main([*command, "--calibrate", ""]) == 2
    assert "empty" in capsys.readouterr().err
    assert main([*command, "--calibrate", "scenes", "--precision", "fp32"]) == 2
    assert "nothing to calibrate" in capsys.readouterr().err
    assert not (folder / "cli").exists()
    given = []
    monkeypatch.setattr(
        build_bundle, "write_bundle", lambda *parts, **options: given.append(options["calibration"])
    )
    (folder / "cli").mkdir()
    more = ["--calibrate", "scenes", "--calibration-count", "7", "--statistics", "kept"]
    for arguments in ([], ["--calibrate", "scenes"], more):
        assert main([*command, *arguments]) == 0
    assert given == [None, Calibration("scenes"), Calibration("scenes", 7, Path("kept"))]

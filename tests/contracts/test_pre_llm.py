"""Every method in the folder holds the contract of ``reduce``, in torch, ONNX Runtime and TensorRT-RTX."""

from __future__ import annotations

import pytest
import torch
from often import often

from foveate.export import methods
from foveate.export.pruning.pre_llm import PreLLMPruner

NAMES = [name for name in methods.names() if methods.load(name).pre_llm]
EXPORTED = [*((name, "float32") for name in NAMES), *often((name, "float16") for name in NAMES)]
TOLERANCE = {"float32": 1e-5, "float16": 4e-3}  # of mixtures of tokens of about size 1
GRIDS = [(4, 4), (12, 12), (24, 24), (9, 16), (1, 30)]


def check_rows(method: PreLLMPruner, tokens: torch.Tensor, out: tuple[torch.Tensor, ...], keep: int) -> None:
    """The contract of ``reduce``; ``fills`` and ``merges`` say how much of it holds."""
    rows, kept, count, *owner = out
    batch, size, width = tokens.shape
    assert rows.dtype == tokens.dtype and kept.dtype == count.dtype == torch.int64
    assert rows.shape == (batch, keep, width) and kept.shape == (batch, keep) and count.shape == (batch,)
    assert rows.isfinite().all()
    for b, number in enumerate(count.tolist()):
        assert number == keep or (not method.fills and 1 <= number < keep)
        valid = kept[b, :number]
        assert (kept[b, number:] == -1).all() and not rows[b, number:].any()
        if method.merges:
            check_owner(owner[0][b], valid, size)
        else:
            assert valid.min() >= 0 and valid.max() < size and (valid.diff() > 0).all()
            assert torch.equal(rows[b, :number], tokens[b, valid])
    assert len(owner) == method.merges


def check_owner(owner: torch.Tensor, kept: torch.Tensor, size: int) -> None:
    """Check ``owner [N]`` of one image against the valid part of ``kept``.

    Rows stand at distinct tokens, and own them.
    """
    assert owner.shape == (size,) and owner.dtype == torch.int64
    assert owner.min() >= -1 and owner.max() < len(kept)
    (rows,) = torch.where(kept >= 0)
    assert len(kept[rows].unique()) == len(rows) and kept.max() < size and kept.min() >= -1
    assert torch.equal(owner[kept[rows]], rows)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_exactly_keep_rows(bench, name, grid):
    here, method = bench(grid), methods.load(name).pre_llm
    inputs = here.inputs(method, seed=0, batch=2)
    for keep in sorted({1, 2, 3, here.size // 9 + 1, here.size // 2, here.size - 1, here.size}):
        check_rows(method, inputs[method.source], here.reduce(method, inputs, keep), keep)


@pytest.mark.parametrize("name", NAMES)
def test_keeping_all_changes_nothing(bench, name):
    here, method = bench(), methods.load(name).pre_llm
    inputs = here.inputs(method, seed=1, dtype="float16")
    assert torch.equal(here.reduce(method, inputs, here.size)[0], inputs[method.source])


@pytest.mark.parametrize("name", NAMES)
def test_constant_and_tied_images(bench, name):
    here, method = bench(), methods.load(name).pre_llm
    for change in (torch.zeros_like, torch.ones_like, lambda x: x.sign() * 0.5):
        inputs = {
            key: change(value) for key, value in here.inputs(method, 2, batch=2, dtype="float16").items()
        }
        for keep in (1, 32, here.size - 1, here.size):
            check_rows(method, inputs[method.source], here.reduce(method, inputs, keep), keep)


@pytest.mark.parametrize("name", NAMES)
def test_images_of_a_batch_do_not_mix(bench, name):
    here, method = bench(), methods.load(name).pre_llm
    inputs = here.inputs(method, seed=3, batch=3)
    together = here.reduce(method, inputs, 20)
    for b in range(3):
        alone = here.reduce(method, {key: value[b : b + 1] for key, value in inputs.items()}, 20)
        assert torch.equal(alone[1][0], together[1][b])


@pytest.mark.parametrize(("name", "dtype"), EXPORTED)
def test_onnxruntime_keeps_what_torch_keeps(bench, name, dtype, tmp_path):
    here, method = bench(), methods.load(name).pre_llm
    session = here.session(method, tmp_path, dtype)
    for seed in range(24):
        inputs = here.inputs(method, 100 + seed, dtype=dtype)
        keep = (1, 16, 32, 48, 96, 143, 144)[seed % 7]
        if seed >= 21:  # constant images: every decision is a tie
            inputs = {key: torch.full_like(value, 0.5) for key, value in inputs.items()}
        ours, theirs = here.reduce(method, inputs, keep), session(inputs, keep)
        assert all(map(torch.equal, ours[1:], theirs[1:])) and len(ours) == len(theirs), (seed, keep)
        if method.merges:
            torch.testing.assert_close(theirs[0], ours[0], rtol=0, atol=TOLERANCE[dtype])
        else:
            assert torch.equal(ours[0], theirs[0]), (seed, keep)


@pytest.mark.parametrize("name", often(NAMES))
def test_tensorrt_rtx_compiles_it(bench, name, tmp_path):
    pytest.importorskip("tensorrt_rtx")
    from foveate.engines.trt import backend as trt

    spec = bench((24, 24)).save(methods.load(name).pre_llm, tmp_path / "pruner.onnx", "float16")
    assert len(trt.compile_plan(tmp_path / "pruner.onnx", spec)) > 1000


@pytest.mark.parametrize("name", methods.names())
def test_options_survive_the_command_line(name):
    method = methods.load(name)
    options = method.describe()
    assert options["position_mode"] in ("compact", "keep") and method.name == name
    text = {k: ",".join(map(str, v)) if isinstance(v, list) else str(v) for k, v in options.items()}
    assert methods.load(name, text) == method

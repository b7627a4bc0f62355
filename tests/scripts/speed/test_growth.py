"""``scripts/bench_growth.py``: what is fitted and what it is told to mean, and a run on a tiny bundle."""

from __future__ import annotations

import json

import pytest

from foveate.jetson.planner import model_sizes
from foveate.runtime.measuring import costs
from speed import growth

SIZES = model_sizes.model("llava-1.5-7b").decoder
LAYERS = SIZES.num_layers


def test_rates_are_those_that_the_times_were_made_of():
    """Times of a machine with 100 GFLOP/s in every product and 10 GB/s."""
    prefill = {n: [costs.prefill_flops(SIZES, ((LAYERS, n),), 0) / 1e11] * 3 for n in (64, 256, 1024, 4096)}
    row = costs.cache_bytes(SIZES, ((LAYERS, 1),), 0, "float32")
    step = {n: [0.01 + n * row / 1e10] * 3 for n in (64, 256, 1024, 4096)}
    fits = {"prefill": growth.fit(prefill, 2), "step": growth.fit(step, 1)}
    lines = growth.explain(SIZES, fits)
    assert "100 GFLOP/s in products" in lines[0] and "100 GFLOP/s in attention" in lines[1]
    assert lines[2].startswith("step: 10.0 ms") and "10.0 GB/s" in lines[2]


def test_a_bundle_is_measured_and_drawn(uniform_bundle, tmp_path, monkeypatch, capsys):
    command = ["bench_growth.py", str(uniform_bundle), "--lengths", "8", "16", "32", "64", "--rounds", "2"]
    monkeypatch.setattr("sys.argv", [*command, "--plot", str(tmp_path / "growth.png")])
    growth.main()
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [len(found["prefill"][n]) for n in ("8", "16", "32", "64")] == [2, 2, 2, 2]
    assert min(min(rounds) for rounds in found["step"].values()) > 0
    assert (tmp_path / "growth.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("degree", [1, 2])
def test_a_fit_goes_through_what_it_can(degree):
    times = {n: [sum(0.5 * n**power for power in range(degree + 1))] for n in (1, 2, 5, 9)}
    assert growth.fit(times, degree) == pytest.approx([0.5] * (degree + 1))

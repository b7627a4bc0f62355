"""The file of statistics: what it gives back, and whose it refuses to be."""

from __future__ import annotations

import numpy as np
import pytest
from safetensors.numpy import save_file

from foveate.calib.statistics import Statistics
from foveate.engines.errors import UserError

QKV, O, DOWN = (
    f"llm.layers.1.{path}.weight" for path in ("self_attn.q_proj", "self_attn.o_proj", "mlp.down_proj")
)
IDENTITY = {"model": "abc", "method": {"name": "none", "options": {}}, "samples": {"count": 1, "sha256": "0"}}


@pytest.fixture
def statistics():
    rng = np.random.default_rng(0)
    found = {}
    for name in (QKV, O, DOWN):
        found |= {f"{name}.{each}": rng.random(8).astype(np.float32) for each in ("absmax", "mean_abs")}
        found[f"{name}.range"] = np.array(3, np.float32)
        for kind in ("awq", "smoothquant"):
            found[f"{name}.{kind}"] = (1 + rng.random(8)).astype(np.float32)
    for each in "kv":
        found[f"llm.layers.1.self_attn.{each}_proj.weight.cache"] = rng.random((2, 4)).astype(np.float32)
    return Statistics(found, IDENTITY)


def test_a_file_gives_back_what_was_saved(statistics, tmp_path):
    statistics.save(tmp_path / "s.safetensors")
    found = Statistics.load(tmp_path / "s.safetensors")
    assert found.identity == IDENTITY
    assert found.tensors.keys() == statistics.tensors.keys()
    for name, value in statistics.tensors.items():
        np.testing.assert_array_equal(found.tensors[name], value)
    assert found.inputs(QKV).range == 3.0
    assert [path.name for path in tmp_path.iterdir()] == ["s.safetensors"]


def test_matrices_of_one_input_share_it(statistics):
    value = statistics.inputs(QKV.replace("q_proj", "v_proj"))
    np.testing.assert_array_equal(value.absmax, statistics.inputs(QKV).absmax)
    factors = statistics.factors("awq")
    assert len(factors) == 5
    np.testing.assert_array_equal(factors[QKV], factors[QKV.replace("q_proj", "k_proj")])
    with pytest.raises(KeyError):
        statistics.inputs("llm.layers.0.mlp.up_proj.weight")


def test_folded_statistics_are_those_of_the_divided_inputs(statistics):
    folded, factors = statistics.folded("smoothquant"), statistics.factors("smoothquant")
    np.testing.assert_allclose(folded.inputs(O).absmax, statistics.inputs(O).absmax / factors[O])
    assert folded.inputs(O).range == pytest.approx((statistics.inputs(O).absmax / factors[O]).max())
    assert folded.factors("smoothquant") == folded.factors("awq") == {}
    keys, values = folded.cache(1)
    np.testing.assert_array_equal(keys, statistics.cache(1)[0])
    np.testing.assert_allclose(values, statistics.cache(1)[1] / factors[O].reshape(2, 4))


@pytest.mark.parametrize("what", ["model", "method", "samples"])
def test_statistics_of_something_else_are_refused(statistics, what):
    statistics.require(IDENTITY, "s")
    with pytest.raises(UserError, match=f"of another {what}"):
        statistics.require(IDENTITY | {what: "other"}, "s")


def test_files_that_hold_no_statistics_are_refused(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        Statistics.load(tmp_path / "none")
    (tmp_path / "text").write_text("hello")
    with pytest.raises(UserError, match="cannot read"):
        Statistics.load(tmp_path / "text")
    save_file({"x": np.zeros(1)}, tmp_path / "weights")
    with pytest.raises(UserError, match="no statistics of this foveate"):
        Statistics.load(tmp_path / "weights")

"""The real Polygraphy reads the files, and writes the same ones."""

from __future__ import annotations

import json

import numpy as np
import pytest

from foveate.runtime.compiling import polygraphy_json

comparator = pytest.importorskip("polygraphy.comparator")
theirs = pytest.importorskip("polygraphy.json")


def test_polygraphy_reads_what_was_written() -> None:
    arrays = {
        "half": np.array([[1.5, -2.0]], np.float16),
        "number": np.array(7),
        "mask": np.array([True, False]),
        "none": np.zeros((1, 0, 3), np.float32),
    }
    (inputs,) = theirs.from_json(polygraphy_json.inputs(arrays))
    ((name, (outputs,)),) = comparator.RunResults.from_json(polygraphy_json.outputs(arrays)).items()
    assert name == outputs.runner_name == "torch float32"
    for found in (dict(inputs), dict(outputs.items())):
        assert found.keys() == arrays.keys()
        for key, value in arrays.items():
            assert found[key].dtype == value.dtype
            np.testing.assert_array_equal(found[key], value)


def test_polygraphy_writes_the_same() -> None:
    """Apart from white space and the order of keys."""
    arrays = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.array([1, 2])}
    assert json.loads(polygraphy_json.inputs(arrays)) == json.loads(theirs.to_json([arrays]))
    result = comparator.IterationResult(arrays, runtime=0.0, runner_name="torch float32")
    results = comparator.RunResults([("torch float32", [result])])
    assert json.loads(polygraphy_json.outputs(arrays)) == json.loads(results.to_json())

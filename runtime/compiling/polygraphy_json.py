"""The JSON files of Polygraphy 0.53, NVIDIA's debugging tool, written without it.

``inputs`` is what ``polygraphy run --load-inputs`` reads, ``outputs`` what ``--load-outputs`` reads. In
Polygraphy's sources (Apache-2.0) the forms are the encoders of ``polygraphy/json/serde.py`` for arrays and of
``polygraphy/comparator/struct.py`` for results. An object names its class in ``polygraphy_class``. An array
is a .npy file in base64.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping
from typing import Any

import numpy as np

__all__ = ["inputs", "outputs"]

_RUNNER = "torch float32"  # Polygraphy shows it as the name of the runner that made the outputs


def inputs(arrays: Mapping[str, np.ndarray]) -> str:
    """Return the inputs of one iteration, given by name."""
    return json.dumps([{name: _array(value) for name, value in arrays.items()}])


def outputs(arrays: Mapping[str, np.ndarray]) -> str:
    """Return the outputs of one iteration, given by name."""
    found = {name: _of("LazyArray", values=_array(value)) for name, value in arrays.items()}
    iteration = _of("IterationResult", outputs=found, runtime=0.0, runner_name=_RUNNER)
    return json.dumps(_of("RunResults", lst=[[_RUNNER, [iteration]]]))


def _of(kind: str, **values: Any) -> dict[str, Any]:
    return {**values, "polygraphy_class": kind}


def _array(value: np.ndarray) -> dict[str, Any]:
    file = io.BytesIO()
    np.save(file, value, allow_pickle=False)
    return _of("ndarray", array=base64.b64encode(file.getvalue()).decode("ascii"))

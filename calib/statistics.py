"""Statistics of a model's activations, in a small safetensors file.

A file belongs to one model, method and set of samples. Tensors are float32 and named after the weight that
reads the activation, such as ``llm.layers.3.self_attn.q_proj.weight.absmax``. ``in`` is the number of rows of
that matrix.

* ``absmax [in]``: the largest |x| of each channel, over all rows.
* ``mean_abs [in]``: the mean |x| of each channel.
* ``range []``: the |x| at which static int8 clips (``InputWatch.clip``).
* ``awq [in]`` and ``smoothquant [in]``: factors (``smoothing.fold``).
* ``cache [Hkv,Dh]``, of k and v: the largest value in the kv cache. Keys are rotated.

q, k and v have the same input, which is stored under q. The input of gate and up is stored under gate.
``inputs`` resolves these names.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors
from safetensors.numpy import save_file

from foveate.calib.input_groups import GROUPS, of_layer
from foveate.engines.disk.files import atomic_file
from foveate.engines.errors import UserError

__all__ = ["KINDS", "InputStatistics", "Statistics"]

KINDS = ("awq", "smoothquant")
_FORMAT = "foveate.statistics.1"


class InputStatistics(NamedTuple):
    """Statistics of the input of a matrix ``[in, out]``.

    ``absmax`` and ``mean_abs`` are float32 [in]. ``range`` is the |x| from which on static int8 clips, so a
    step is range / 127. fp8 gains nothing by clipping and takes its scale from ``absmax.max()``.
    """

    absmax: np.ndarray
    mean_abs: np.ndarray
    range: float


@dataclass(frozen=True)
class Statistics:
    """The statistics of a model.

    ``tensors`` are described above. ``identity`` holds JSON values of "model", "method" and "samples".
    """

    tensors: Mapping[str, np.ndarray]
    identity: Mapping[str, Any]

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Statistics:
        """Read the file ``path``. Raises UserError if it is missing, damaged, or of another format."""
        if not Path(path).is_file():
            raise UserError(
                f"no statistics at {path} | got no such file | collect them with foveate build --calibrate"
            )
        try:
            with safetensors.safe_open(path, framework="numpy") as file:
                metadata = file.metadata() or {}
                if metadata.get("format") != _FORMAT:
                    raise UserError(
                        f"{path} holds no statistics of this foveate "
                        f"| got format {metadata.get('format')}, expected {_FORMAT} "
                        "| delete it and collect them again with foveate build --calibrate"
                    )
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, no mapping
        except safetensors.SafetensorError as error:
            raise UserError(
                f"cannot read the statistics {path} | {error} "
                "| delete it and collect them again with foveate build --calibrate"
            ) from error
        return cls(tensors, json.loads(metadata["identity"]))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the file ``path`` in one step: a killed run leaves the old file."""
        arrays = {name: np.asarray(array, np.float32, order="C") for name, array in self.tensors.items()}
        with atomic_file(path) as part:
            save_file(arrays, part, {"format": _FORMAT, "identity": json.dumps(dict(self.identity))})

    def require(self, identity: Mapping[str, Any], label: str | os.PathLike[str]) -> None:
        """Raise UserError if an entry of ``identity`` differs from these statistics.

        ``label`` is the file's name.
        """
        for what, expected in identity.items():
            if (got := self.identity.get(what)) != expected:
                raise UserError(
                    f"the statistics {label} are of another {what} | got {json.dumps(got)}, expected "
                    f"{json.dumps(expected)} | name another file with --statistics, or calibrate again"
                )

    def inputs(self, weight: str) -> InputStatistics:
        """Return the statistics of the input of the matrix ``weight``. Raises KeyError if there are none."""
        name = _input(weight)
        absmax, mean, clip = (self.tensors[f"{name}.{each}"] for each in ("absmax", "mean_abs", "range"))
        return InputStatistics(absmax, mean, float(clip))

    def cache(self, layer: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the largest |k| (rotated) and |v| in the kv cache of a layer: float32 [Hkv, Dh]."""
        keys, values = (
            self.tensors[f"llm.layers.{layer}.self_attn.{each}_proj.weight.cache"] for each in "kv"
        )
        return keys, values

    def factors(self, kind: str) -> dict[str, np.ndarray]:
        """Return the factors of ``kind`` for ``fold.Smoothed``: float32 [in] by matrix.

        ``kind`` is "awq" or "smoothquant".
        """
        assert kind in KINDS, kind
        found: dict[str, np.ndarray] = {}
        for name, value in self.tensors.items():
            weight, _, last = name.rpartition(".")
            if last == kind:
                place = of_layer(weight)
                assert place is not None, f"{weight} has factors and is in no layer"
                layer, first = place
                group = next(group for group in GROUPS if group.name == first)
                found |= {f"{layer}{module}.weight": value for module in group.reads}
        return found

    def folded(self, kind: str) -> Statistics:
        """Return the statistics of the model ``Smoothed(weights, factors(kind))``.

        After smoothing the range is the maximum, as in SmoothQuant: the channels are then even, so the
        largest values count as much as others, and clipping them was worse in every measurement
        (docs/decisions/0010).
        """
        tensors = {name: value for name, value in self.tensors.items() if not name.endswith(KINDS)}
        for name, factor in self.factors(kind).items():
            if f"{name}.absmax" not in tensors:
                continue  # the input is kept under another matrix of its group
            tensors |= {
                f"{name}.{each}": tensors[f"{name}.{each}"] / factor for each in ("absmax", "mean_abs")
            }
            tensors[f"{name}.range"] = np.asarray(tensors[f"{name}.absmax"].max())
            if name.endswith("o_proj.weight"):
                values = name.replace("o_proj", "v_proj") + ".cache"
                tensors[values] = tensors[values] / factor.reshape(tensors[values].shape)
        return Statistics(tensors, self.identity)


def _input(weight: str) -> str:
    """Return the matrix under whose name the statistics of the input of ``weight`` are stored."""
    place = of_layer(weight)
    if place is None:
        return weight
    layer, module = place
    group = next((group for group in GROUPS if module in group.reads), None)
    return f"{layer}{group.name}.weight" if group else weight

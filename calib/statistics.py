"""What calibration found out about a model's activations: a small safetensors file, bound to model, method and samples.

Tensors go by the name of the weight that reads the activation, float32, ``in`` being the rows of that matrix::

    llm.layers.3.self_attn.q_proj.weight.absmax      [in]       largest |x| of each channel, over all rows of all samples
    llm.layers.3.self_attn.q_proj.weight.mean_abs    [in]       mean |x| of each channel
    llm.layers.3.self_attn.q_proj.weight.range       []         where static int8 clips |x| (``collect.InputWatch.clip``)
    llm.layers.3.self_attn.q_proj.weight.awq         [in]       factors (``equivalent``); likewise ``smoothquant``
    llm.layers.3.self_attn.k_proj.weight.cache       [Hkv,Dh]   largest |k| of the cache (rotated); v_proj likewise

q, k and v have one input, which is kept under q; gate and up have theirs under gate. ``inputs`` knows that.
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

from foveate.calib.smoothing.fold import GROUPS, of_layer
from foveate.engines.disk.files import atomic_file
from foveate.engines.errors import UserError

__all__ = ["KINDS", "InputStatistics", "Statistics"]

KINDS = ("awq", "smoothquant")
_FORMAT = "foveate.statistics.1"


class InputStatistics(NamedTuple):
    """Of the input of a matrix ``[in, out]``: ``absmax`` and ``mean_abs`` float32 [in]; ``range``: |x| from which on static int8
    clips, so that a step is range / 127. fp8 gains nothing by clipping: its scale comes from ``absmax.max()``."""

    absmax: np.ndarray
    mean_abs: np.ndarray
    range: float


@dataclass(frozen=True)
class Statistics:
    """``tensors`` as above. ``identity``: JSON values under "model", "method" and "samples"."""

    tensors: Mapping[str, np.ndarray]
    identity: Mapping[str, Any]

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Statistics:
        """Raises UserError when ``path`` is no such file."""
        if not Path(path).is_file():
            raise UserError(
                f"no statistics at {path} | got no such file | collect them with foveate build --calibrate"
            )
        try:
            with safetensors.safe_open(path, framework="numpy") as file:
                metadata = file.metadata() or {}
                if metadata.get("format") != _FORMAT:
                    raise UserError(
                        f"{path} holds no statistics of this foveate | got format {metadata.get('format')}, expected "
                        f"{_FORMAT} | delete it and collect them again with foveate build --calibrate"
                    )
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, no mapping
        except safetensors.SafetensorError as error:
            raise UserError(
                f"cannot read the statistics {path} | {error} | delete it and collect them again with foveate build "
                "--calibrate"
            ) from error
        return cls(tensors, json.loads(metadata["identity"]))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the file ``path``; a killed run leaves what was there."""
        arrays = {name: np.asarray(array, np.float32, order="C") for name, array in self.tensors.items()}
        with atomic_file(path) as part:
            save_file(arrays, part, {"format": _FORMAT, "identity": json.dumps(dict(self.identity))})

    def require(self, identity: Mapping[str, Any], label: str | os.PathLike[str]) -> None:
        """Raises UserError where one of the entries of ``identity`` is another than ours; ``label`` names the file."""
        for what, expected in identity.items():
            if (got := self.identity.get(what)) != expected:
                raise UserError(
                    f"the statistics {label} are of another {what} | got {json.dumps(got)}, expected "
                    f"{json.dumps(expected)} | name another file with --statistics, or calibrate again"
                )

    def inputs(self, weight: str) -> InputStatistics:
        """Of what the matrix ``weight`` reads. Raises KeyError where nothing was collected."""
        name = _input(weight)
        absmax, mean, clip = (self.tensors[f"{name}.{each}"] for each in ("absmax", "mean_abs", "range"))
        return InputStatistics(absmax, mean, float(clip))

    def cache(self, layer: int) -> tuple[np.ndarray, np.ndarray]:
        """Largest |k| (rotated) and |v| in the cache of a layer, float32 [Hkv, Dh] each: by head and channel."""
        keys, values = (
            self.tensors[f"llm.layers.{layer}.self_attn.{each}_proj.weight.cache"] for each in "kv"
        )
        return keys, values

    def factors(self, kind: str) -> dict[str, np.ndarray]:
        """For ``equivalent.Smoothed``: float32 [in] of every matrix that has factors of this ``kind`` ("awq", "smoothquant")."""
        assert kind in KINDS, kind
        found = {}
        for name, value in self.tensors.items():
            weight, _, last = name.rpartition(".")
            if last == kind:
                layer, first = of_layer(weight)
                group = next(group for group in GROUPS if group.name == first)
                found |= {f"{layer}{module}.weight": value for module in group.reads}
        return found

    def folded(self, kind: str) -> Statistics:
        """Of the model that ``Smoothed(weights, factors(kind))`` is.

        Where factors have evened the channels out, the range is the maximum, as SmoothQuant has it: what is largest then
        counts as much as all else, and clipping it was worse in every measurement (docs/measurements.md).
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
    place = of_layer(weight)
    group = place and next((group for group in GROUPS if place[1] in group.reads), None)
    return f"{place[0]}{group.name}.weight" if group else weight

"""One run of a graph as the build recorded it: its inputs, and what torch computed from them.

The language model gets its prompt in one piece, on an empty cache. Its later tokens are left out, since the
build records the cache of two layers only.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from foveate.engines.spec import GraphSpec, TensorSpec
from foveate.runtime.bundle.arrays import Archive
from foveate.runtime.bundle.manifest import Manifest

__all__ = ["RecordedRun", "read_run"]


class RecordedRun(NamedTuple):
    """Inputs by name in the graph's dtypes, and outputs by name, floats in float32.

    The caches of inner layers are missing from the outputs.
    """

    inputs: dict[str, np.ndarray]
    outputs: dict[str, np.ndarray]


def read_run(manifest: Manifest, graph: str, spec: GraphSpec, golden: Archive) -> RecordedRun:
    """Return the run of ``graph``, whose interface in its dialect is ``spec``.

    Raises UserError if an array is missing from ``golden`` or damaged.
    """
    if spec.in_place:
        return _prompt(manifest, graph, spec, golden)
    inputs = {each.name: golden[f"{graph}.in.{each.name}"].astype(each.dtype) for each in spec.inputs}
    return RecordedRun(
        inputs, {each.name: _wide(golden[f"{graph}.out.{each.name}"]) for each in spec.outputs}
    )


def _prompt(manifest: Manifest, graph: str, spec: GraphSpec, golden: Archive) -> RecordedRun:
    """Return the run of a segment of the language model over its prompt."""
    rows = int(golden[f"{graph}.prompt"])
    first, *others = spec.inputs
    inputs = {first.name: golden[f"{graph}.in.{first.name}"][:, :rows].astype(first.dtype)}
    for each in others:
        if each.name == "position_ids":
            inputs[each.name] = golden[f"{graph}.in.{each.name}"][..., :rows]
        elif each.name == "last":
            inputs[each.name] = np.array([rows - 1], each.dtype)
        else:  # write_index, and the cache
            inputs[each.name] = _zeros(each, rows)
    outputs = {}
    for each in spec.outputs:
        name = f"{graph}.out.{each.name}"
        if each.name == "logits":
            outputs[each.name] = _wide(golden[name][None, :1])
        elif each.name.startswith("present."):
            if name in golden:  # the first layer and the last
                outputs[each.name] = _wide(golden[name][:, :, :rows])
        elif taken := _taken(manifest, graph, each.name, golden):
            outputs[each.name] = _wide(golden[taken][:, :rows])
    return RecordedRun(inputs, outputs)


def _zeros(tensor: TensorSpec, rows: int) -> np.ndarray:
    """Return zeros for an input whose open dimensions are ``rows`` long."""
    return np.zeros([size if isinstance(size, int) else rows for size in tensor.shape], tensor.dtype)


def _taken(manifest: Manifest, graph: str, output: str, golden: Archive) -> str | None:
    """Return the recorded input of the next graph that holds all rows of a segment's ``output``, or None.

    The recording of the segment itself has only the last rows.
    """
    stages = manifest.stages
    following = stages[stages.index(graph) + 1]
    if f"{following}.in.{output}" in golden:  # a pruner between two segments
        return f"{following}.in.{output}"
    rows = manifest.graphs[following].inputs[0].name
    direct = output == "hidden" and manifest.graphs[following].in_place
    return f"{following}.in.{rows}" if direct else None


def _wide(value: np.ndarray) -> np.ndarray:
    return value.astype(np.float32) if value.dtype.kind == "f" else value

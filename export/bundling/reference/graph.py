"""Run one graph of a recording in float32: a whole module, or a segment layer by layer.

Modules are filled one at a time, so only one of them, or one decoder layer, is in memory. ``ranges`` notes
the largest values.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from foveate.export.bundling.graph_weights import Reading, Rounding
from foveate.export.bundling.reference.near_ties import near_ties
from foveate.export.bundling.reference.ranges import Ranges
from foveate.export.checkpoints.module_weights import fill
from foveate.export.graphs.graph import Graph
from foveate.export.networks.decoder import (
    Decoder,
    DecoderLayer,
    Linear,
    RMSNorm,
    Segment,
    rope_of,
    rope_tables,
)
from foveate.runtime.overflow import FLOAT16_MAX

__all__ = ["half", "run_graph", "run_segment"]


def run_graph(
    graph: Graph, weights: Reading, inputs: list[Tensor], ranges: Ranges
) -> tuple[dict[str, Tensor], dict[str, np.ndarray]]:
    """Run a copy of the graph's module. Return its outputs by name, and the recorded arrays.

    It is a copy because the module itself may be traced again. The near-ties of a pruner are recorded too.
    """
    name, module = graph.spec.name, _ready(copy.deepcopy(graph.module), weights, graph.weight)
    for tensor, value in zip(graph.spec.inputs, inputs, strict=True):
        ranges.see(name, f"input {tensor.name}", value, edge=True)

    def run(values: list[Tensor]) -> dict[str, Tensor]:
        answer = module(*values)
        outputs = tuple(answer.values()) if isinstance(answer, dict) else answer
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        return {tensor.name: value for tensor, value in zip(graph.spec.outputs, outputs, strict=True)}

    with ranges.watch(name, module):
        found = run(inputs)
    for key, value in found.items():
        ranges.see(name, f"output {key}", value, edge=True)
    arrays = {f"{name}.in.{t.name}": _store(v) for t, v in zip(graph.spec.inputs, inputs, strict=True)}
    arrays |= {f"{name}.out.{key}": value.numpy() for key, value in found.items()}
    if "kept" in found:
        arrays |= {f"{name}.{key}": value for key, value in near_ties(run, inputs, found).items()}
    return found, arrays


def run_segment(
    graph: Graph, weights: Reading, rows: Tensor, positions: np.ndarray, prompt: int, ranges: Ranges
) -> tuple[dict[str, Tensor], dict[str, np.ndarray]]:
    """Run a segment over the prompt and the forced tokens in one pass.

    Only one decoder layer is in memory at a time. Returns the outputs that have one row per token (not the
    logits), and the recorded arrays.
    """
    module, name, length = graph.module, graph.spec.name, rows.shape[1]
    assert isinstance(module, (Segment, Decoder))  # graphs with a kv cache
    spec = module.decoder.spec if isinstance(module, Segment) else module.spec
    position_ids, start = torch.from_numpy(positions)[..., None, :], torch.zeros(1, dtype=torch.int64)
    rope = rope_of(spec, *rope_tables(spec), position_ids)
    mask = Decoder.causal_mask(length, length, start)
    empty = torch.zeros(1, spec.num_kv_heads, length, spec.head_dim)
    arrays: dict[str, np.ndarray] = {
        f"{name}.prompt": np.array(prompt, np.int64),
        f"{name}.in.{graph.spec.inputs[0].name}": _store(rows),
        f"{name}.in.position_ids": position_ids.numpy(),
    }
    first, end, watched = (
        (module.first, module.end, module.scored)
        if isinstance(module, Segment)
        else (0, spec.num_layers, None)
    )
    hidden = rows
    behind: dict[str, Tensor] = {}
    for index in range(first, end):
        if index == watched:
            behind["scored"] = hidden
        with torch.device("meta"):
            layer = DecoderLayer(spec)
        _ready(layer, weights, f"llm.layers.{index}.", together=prompt)
        with ranges.watch(name, layer, layer=index, cached=True):
            hidden, keys, values = layer(hidden, rope, start, mask, (empty, empty))
        if index in (first, end - 1):
            arrays |= {
                f"{name}.out.present.{index}.key": _store(keys),
                f"{name}.out.present.{index}.value": _store(values),
            }
    behind["hidden"] = hidden
    answers = behind
    if end == spec.num_layers:
        with torch.device("meta"):
            norm, head = (
                RMSNorm(spec.hidden_size, spec.rms_norm_eps),
                Linear(spec.hidden_size, spec.vocab_size),
            )
        last = fill(norm, weights, "llm.norm.")(hidden[:, prompt - 1 :])
        ranges.see(name, "norm, output", last)
        answers = {"logits": _ready(head, weights, "llm.lm_head.", together=1)(last)}
    ranges.see(name, f"input {graph.spec.inputs[0].name}", rows, edge=True)
    for key, value in answers.items():
        ranges.see(name, f"output {key}", value, edge=True)
        arrays[f"{name}.out.{key}"] = value[0, prompt - length - 1 :].numpy()
    return behind, arrays


def half(x: Tensor) -> Tensor:
    """Round floats to float16, unless it cannot hold them. Integers stay."""
    return x.half().float() if _holds(x) else x


def _ready(
    module: nn.Module, weights: Reading, weight: str | Callable[[str], str], together: int | None = None
) -> nn.Module:
    """Fill ``module`` with weights and make its products round their inputs as the graphs do.

    The first ``together`` rows are rounded together and every later row by itself; None rounds all rows
    together.
    """
    name_of = weight.__add__ if isinstance(weight, str) else weight
    for path, part in fill(module, weights, weight).named_modules():
        if isinstance(part, Linear):
            rounding = weights.rounding(name_of(f"{path}.weight" if path else "weight"))
            if rounding is not None:
                part.register_forward_pre_hook(partial(_round, rounding, together))
    return module


def _round(rounding: Rounding, together: int | None, module: nn.Module, inputs: tuple[Tensor]) -> Tensor:
    (x,) = inputs
    if together is None:
        return rounding(x)
    calls = x.split([together, *[1] * (x.shape[1] - together)], dim=1)
    return torch.cat([rounding(call) for call in calls], dim=1)


def _holds(x: Tensor) -> bool:
    """Return True for floats that float16 can hold.

    For others no float16 graph is written (``write_graphs.widen``).
    """
    return x.is_floating_point() and (not x.numel() or float(x.abs().amax()) <= FLOAT16_MAX)


def _store(value: Tensor) -> np.ndarray:
    return (value.half() if _holds(value) else value).numpy()

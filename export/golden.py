"""golden.npz: what every graph must answer, recorded by torch in float32 with the bundle's own weights.

The weights are those that were written (dequantized), so a replay tests the engine and not the quantization.
Modules are filled one at a time, the decoder layer by layer, so a 7B model needs the memory of one layer.
Inputs are rounded to float16 first: every dialect is fed the same numbers.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from foveate.export.decoder import Decoder, DecoderLayer, Linear, RMSNorm, Segment, rope_tables
from foveate.export.graph import Graph
from foveate.export.parts import Weights
from foveate.export.sources import fill
from foveate.runtime.budget import Points
from foveate.runtime.segment import Chunk

__all__ = ["Facts", "Question", "record"]

FORCED_TOKENS = 32


@dataclass(frozen=True)
class Question:
    """One prompt as token ids: what stands before the picture, after it, and the user's words alone."""

    before: np.ndarray
    after: np.ndarray
    words: np.ndarray
    clip_ids: np.ndarray | None  # [S,C], for bundles with a text encoder


@dataclass(frozen=True)
class Facts:
    """What the bundle says of its stages: a picture's tokens, the budgets' points by stage, and whether rows are numbered
    anew behind a cut of the decoder."""

    total: int
    budgets: Mapping[str, Points]
    renumbers: bool


@torch.inference_mode()
def record(
    graphs: list[Graph], weights: Weights, embed_tokens: np.ndarray, question: Question, facts: Facts
) -> dict[str, np.ndarray]:
    """Run every graph once and return the arrays of golden.npz (names: design section 5, ``runtime.check``)."""
    arrays: dict[str, np.ndarray] = {}
    values = {"text_embeds": _embed(embed_tokens, question.words)}
    language = next(i for i, graph in enumerate(graphs) if graph.spec.in_place)
    for graph in graphs[:language]:
        values |= _run(graph, weights, values, question, arrays)
    count = int(values["count"]) if "count" in values else facts.total
    visual = values["tokens"][:, :count] if "tokens" in values else values["projected"]
    rng = np.random.default_rng(0)
    forced = rng.integers(0, len(embed_tokens), FORCED_TOKENS)
    parts = [_embed(embed_tokens, question.before), visual, _embed(embed_tokens, question.after)]
    patches = values["kept"][0, :count].numpy() if "kept" in values else np.arange(count)
    prompt = _describe(len(question.before), patches, len(question.after), facts)
    rows = torch.cat([*parts, _embed(embed_tokens, forced)], dim=1)
    return arrays | {"llm.tokens": forced} | _language(graphs[language:], weights, rows, prompt, facts)


def _describe(before: int, patches: np.ndarray, after: int, facts: Facts) -> Chunk:
    """What is known of the prompt's rows: text, one picture, text."""
    total = before + len(patches) + after

    def visual(value: np.ndarray | int, text: int) -> np.ndarray:
        column = np.full(total, text, np.int64)
        column[before : before + len(patches)] = value
        return column

    return Chunk(
        picture=visual(0, -1),
        source=visual(np.arange(len(patches)), -1),
        patch=visual(patches, -1),
        entered=visual(len(patches), 0),
        total=visual(facts.total, 0),
        keep=visual(max(1, facts.total * 2 // 9), 0),
        positions=np.arange(total),
    )


def _language(
    graphs: list[Graph], weights: Weights, rows: Tensor, chunk: Chunk, facts: Facts
) -> dict[str, np.ndarray]:
    """The segments in order, each over the prompt as it is there and the forced tokens; pruners see the prompt alone."""
    arrays: dict[str, np.ndarray] = {}
    positions, carried, behind = np.arange(rows.shape[1]), {}, {}
    for graph in graphs:
        if graph.spec.in_place:
            entering = _half(rows)
            behind, found = _segment(graph, weights, entering, positions, len(chunk))
            arrays |= found
        else:
            given = {"scored": entering, "inputs_embeds": entering, **behind}
            before = {name: value[:, : len(chunk)] for name, value in given.items()} | carried
            out = _prune(graph, weights, before, chunk, facts, arrays)
            count, forced = int(out["count"]), positions[len(chunk) :]
            rows = torch.cat([out["tokens"][:, :count], behind["hidden"][:, len(chunk) :]], dim=1)
            carried = {f"carried.{n[6:]}": v[:, :count] for n, v in out.items() if n.startswith("carry.")}
            chunk = chunk.take(out["kept"][0, :count].numpy())
            positions = np.concatenate([chunk.positions, forced])
            if facts.renumbers:
                positions = np.arange(len(positions))
                chunk = replace(chunk, positions=positions[:count])
    return arrays


def _prune(
    graph: Graph,
    weights: Weights,
    before: dict[str, Tensor],
    chunk: Chunk,
    facts: Facts,
    arrays: dict[str, np.ndarray],
) -> dict[str, Tensor]:
    """A pruner between two segments: its outputs by name; inputs and outputs go into ``arrays``."""
    name = graph.spec.name
    known = chunk.feeds(facts.budgets.get(name, ()))
    values = before | {key: torch.from_numpy(value) for key, value in known.items()}
    inputs = [_half(values[tensor.name]) for tensor in graph.spec.inputs]
    answer = _filled(graph, weights)(*inputs)
    found = {tensor.name: value for tensor, value in zip(graph.spec.outputs, answer, strict=True)}
    arrays |= {f"{name}.in.{t.name}": _store(v) for t, v in zip(graph.spec.inputs, inputs, strict=True)}
    arrays |= {f"{name}.out.{key}": value.numpy() for key, value in found.items()}
    return found


def _filled(graph: Graph, weights: Weights) -> nn.Module:
    """The graph's module with its weights: a copy, since the module itself may be traced once more."""
    return fill(copy.deepcopy(graph.module), weights, graph.weight)


def _half(x: Tensor) -> Tensor:
    """Floats rounded to float16, integers as they are."""
    return x.half().float() if x.is_floating_point() else x


def _embed(table: np.ndarray, ids: np.ndarray) -> Tensor:
    return torch.from_numpy(np.asarray(table[ids], np.float32))[None]


def _run(
    graph: Graph,
    weights: Weights,
    values: dict[str, Tensor],
    question: Question,
    arrays: dict[str, np.ndarray],
) -> dict[str, Tensor]:
    name, inputs = graph.spec.name, []
    for tensor in graph.spec.inputs:
        if tensor.name == "pixel_values":
            value = _half(_picture(tensor.extent("opt")))
        elif tensor.name == "input_ids":
            value = torch.from_numpy(question.clip_ids)
        elif tensor.value is not None:
            value = torch.tensor(tensor.value.opt)
        else:
            value = _half(values[tensor.name])
        inputs.append(value)
        arrays[f"{name}.in.{tensor.name}"] = _store(value)
    answer = _filled(graph, weights)(*inputs)
    outputs = tuple(answer.values()) if isinstance(answer, dict) else answer
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    found = {tensor.name: value for tensor, value in zip(graph.spec.outputs, outputs, strict=True)}
    arrays |= {f"{name}.out.{key}": value.numpy() for key, value in found.items()}
    return found


def _store(value: Tensor) -> np.ndarray:
    return (value.half() if value.is_floating_point() else value).numpy()


def _picture(shape: tuple[int, ...]) -> Tensor:
    """A smooth random picture with edges: coarse noise, enlarged, plus one bright square. Seeded."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randn(shape[0], shape[1], 8, 8, generator=generator)
    picture = nn.functional.interpolate(coarse, shape[2:], mode="bilinear")
    height, width = shape[2] // 4, shape[3] // 4
    picture[..., height : 2 * height, width : 2 * width] += 2
    return picture


def _segment(
    graph: Graph, weights: Weights, rows: Tensor, positions: np.ndarray, prompt: int
) -> tuple[dict[str, Tensor], dict[str, np.ndarray]]:
    """Teacher-forced over prompt and forced tokens in one pass, one decoder layer in memory at a time: the outputs that
    have a row for each (not the logits), and what is recorded."""
    module, name, length = graph.module, graph.spec.name, rows.shape[1]
    spec = module.decoder.spec if isinstance(module, Segment) else module.spec
    position_ids, start = torch.from_numpy(positions)[None], torch.zeros(1, dtype=torch.int64)
    rope = *rope_tables(spec), position_ids
    mask = Decoder.causal_mask(length, length, start)
    empty = torch.zeros(1, spec.num_kv_heads, length, spec.head_dim)
    arrays = {
        f"{name}.prompt": np.int64(prompt),
        f"{name}.in.{graph.spec.inputs[0].name}": _store(rows),
        f"{name}.in.position_ids": position_ids.numpy(),
    }
    first, end, watched = (
        (module.first, module.end, module.scored)
        if isinstance(module, Segment)
        else (0, spec.num_layers, None)
    )
    hidden, behind = rows, {}
    for index in range(first, end):
        if index == watched:
            behind["scored"] = hidden
        with torch.device("meta"):
            layer = DecoderLayer(spec)
        fill(layer, weights, f"llm.layers.{index}.")
        hidden, keys, values = layer(hidden, rope, start, mask, (empty, empty))
        if index in (first, end - 1):
            arrays |= {
                f"{name}.out.present.{index}.key": keys.half().numpy(),
                f"{name}.out.present.{index}.value": values.half().numpy(),
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
        answers = {"logits": fill(head, weights, "llm.lm_head.")(last)}
    for key, value in answers.items():
        arrays[f"{name}.out.{key}"] = value[0, prompt - length - 1 :].numpy()
    return behind, arrays

"""golden.npz: what every graph must answer, recorded by torch in float32 with the bundle's own weights.

The weights are those that were written (dequantized), so a replay tests the engine and not the quantization.
Modules are filled one at a time, the decoder layer by layer, so a 7B model needs the memory of one layer.
Inputs are rounded to float16 first: every dialect is fed the same numbers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from foveate.export.assemble import Graph
from foveate.export.decoder import Decoder, DecoderLayer, rope_tables
from foveate.export.parts import Weights
from foveate.export.sources import fill

__all__ = ["Question", "record"]

FORCED_TOKENS = 32


@dataclass(frozen=True)
class Question:
    """One prompt as token ids: what stands before the picture, after it, and the user's words alone."""

    before: np.ndarray
    after: np.ndarray
    words: np.ndarray
    clip_ids: np.ndarray | None  # [S,C], for bundles with a text encoder


@torch.inference_mode()
def record(
    graphs: list[Graph], weights: Weights, embed_tokens: np.ndarray, question: Question
) -> dict[str, np.ndarray]:
    """Run every graph once and return the arrays of golden.npz (names: design section 5, ``runtime.check``)."""
    arrays: dict[str, np.ndarray] = {}
    values = {"text_embeds": _embed(embed_tokens, question.words)}
    for graph in graphs:
        if graph.spec.name != "llm":
            values |= _run(graph, weights, values, question, arrays)
    visual = values["tokens"][:, : int(values["count"])] if "tokens" in values else values["projected"]
    rng = np.random.default_rng(0)
    forced = rng.integers(0, len(embed_tokens), FORCED_TOKENS)
    parts = [_embed(embed_tokens, question.before), visual, _embed(embed_tokens, question.after)]
    prompt = sum(part.shape[1] for part in parts)
    inputs_embeds = _half(torch.cat([*parts, _embed(embed_tokens, forced)], dim=1))
    arrays |= {"llm.prompt": np.int64(prompt), "llm.tokens": forced}
    arrays |= _decode(graphs[-1].module, weights, inputs_embeds, prompt)
    return arrays


def _half(x: Tensor) -> Tensor:
    return x.half().float()


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
    answer = fill(graph.module, weights, graph.weight)(*inputs)
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


def _decode(decoder: Decoder, weights: Weights, inputs_embeds: Tensor, prompt: int) -> dict[str, np.ndarray]:
    """Teacher-forced over prompt and forced tokens in one pass, one decoder layer in memory at a time."""
    spec, rows = decoder.spec, inputs_embeds.shape[1]
    position_ids, start = torch.arange(rows)[None], torch.zeros(1, dtype=torch.int64)
    rope = *rope_tables(spec), position_ids
    mask = Decoder.causal_mask(rows, rows, start)
    empty = torch.zeros(1, spec.num_kv_heads, rows, spec.head_dim)
    arrays = {"llm.in.inputs_embeds": _store(inputs_embeds), "llm.in.position_ids": position_ids.numpy()}
    hidden = inputs_embeds
    for index in range(spec.num_layers):
        with torch.device("meta"):
            layer = DecoderLayer(spec)
        fill(layer, weights, f"llm.layers.{index}.")
        hidden, keys, values = layer(hidden, rope, start, mask, (empty, empty))
        if index in (0, spec.num_layers - 1):
            arrays |= {
                f"llm.out.present.{index}.key": keys.half().numpy(),
                f"llm.out.present.{index}.value": values.half().numpy(),
            }
    fill(decoder.norm, weights, "llm.norm.")
    fill(decoder.lm_head, weights, "llm.lm_head.")
    arrays["llm.out.logits"] = decoder.lm_head(decoder.norm(hidden[0, prompt - 1 :])).numpy()
    return arrays

"""Record the reference answers (golden.npz): torch runs every graph in float32 with the bundle's own weights.

The weights are the written ones, dequantized. Inputs of products are rounded in the same way as in the graph,
so a replay tests the engine and not the quantization. Dialects that round differently therefore have separate
recordings. Modules are filled one at a time, and the decoder layer by layer, so a 7B model needs the memory
of one layer. Inputs are first rounded to float16, if it can hold them, so every dialect is fed the same
numbers. ``ranges`` notes the largest values.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from foveate.engines.spec import TensorSpec
from foveate.export.bundling.graph_weights import Reading
from foveate.export.bundling.reference.graph import half, run_graph, run_segment
from foveate.export.bundling.reference.ranges import Ranges
from foveate.export.graphs.graph import Graph
from foveate.runtime.images.token_layout import Layout
from foveate.runtime.llm.budget import Points
from foveate.runtime.llm.prompt_items import axes_of, positions_of
from foveate.runtime.llm.prompt_rows import PromptRows
from foveate.runtime.llm.visual_tokens import VisualTokens

__all__ = ["Facts", "Question", "record"]

FORCED_TOKENS = 32
MOST_KEPT = 32
"""The largest budget of pre-LLM pruners in the recording.

Diversity methods become ill-conditioned as the kept set grows: with `cdpruner` on `scripts/shapes`, whose 576
tokens are much alike in the recorded image, torch and ONNX Runtime agree at 32 tokens and differ at 48."""


@dataclass(frozen=True)
class Question:
    """One prompt as token ids: the text before the image, the text after it, and the user's words alone."""

    before: np.ndarray
    after: np.ndarray
    words: np.ndarray
    clip_ids: np.ndarray | None  # [S,C] in bundles with a text encoder, else None


@dataclass(frozen=True)
class Facts:
    """Facts about the bundle's stages that a recording needs.

    * ``layout``: layout of the image's tokens.
    * ``budgets``: points of the budgets by stage (``Method.budgets``).
    * ``renumbers``: position ids are renumbered after a cut of the decoder.
    * ``whole``: the pre-LLM pruner sees all tokens of the image at once.
    """

    layout: Layout
    budgets: Mapping[str, Points]
    renumbers: bool
    whole: bool = False


@torch.inference_mode()
def record(
    graphs: list[Graph],
    weights: Reading,
    embed_tokens: np.ndarray,
    question: Question,
    facts: Facts,
    ranges: Ranges | None = None,
) -> dict[str, np.ndarray]:
    """Run every graph once and return the arrays of golden.npz by name (the self-test reads them).

    ``ranges`` notes the size of every computed value. Raises UserError when NaN or infinity is computed.
    """
    ranges = Ranges() if ranges is None else ranges
    arrays: dict[str, np.ndarray] = {}
    piece = facts.layout.whole if facts.whole else facts.layout.pieces[-1]
    view = torch.from_numpy(facts.layout.order[piece])
    values = {"text_embeds": _embed(embed_tokens, question.words), "view": view}
    language = next(i for i, graph in enumerate(graphs) if graph.spec.in_place)
    for graph in graphs[:language]:
        found, recorded = _run(graph, weights, values, question, facts, ranges)
        values |= found
        arrays |= recorded
    visual, kept = _visual(values, view, piece.ravel())
    rng = np.random.default_rng(0)
    forced = rng.integers(0, len(embed_tokens), FORCED_TOKENS)
    parts = [_embed(embed_tokens, question.before), visual, _embed(embed_tokens, question.after)]
    prompt = _describe(question, kept, facts, axes_of(graphs[language].spec))
    rows = torch.cat([*parts, _embed(embed_tokens, forced)], dim=1)
    return (
        arrays | {"llm.tokens": forced} | _language(graphs[language:], weights, rows, prompt, facts, ranges)
    )


def _visual(values: dict[str, Tensor], view: Tensor, places: np.ndarray) -> tuple[Tensor, np.ndarray]:
    """Return the visual rows ``[1,R,D]`` that enter the language model, and the place of each in the image.

    The rows come from one piece of the image, whose tokens are at ``places``, or from the last tile if the
    vision encoder merged them. A mixture without a place has -1.
    """
    if "tokens" not in values:
        return values["projected"].flatten(0, 1)[view.flatten()][None], places
    count = int(values["count"][-1])
    kept = values["kept"][-1, :count].numpy()
    return values["tokens"][-1:, :count], np.where(kept < 0, -1, places[kept.clip(max=len(places) - 1)])


def _describe(question: Question, kept: np.ndarray, facts: Facts, axes: int) -> PromptRows:
    """Describe the rows of a prompt of text, one image and text. Position ids have ``axes`` axes."""
    before, plan = len(question.before), facts.layout
    image = VisualTokens(None, kept, plan)
    positions = positions_of([*question.before, image, *question.after], 0, axes)
    size = positions.shape[-1]

    def visual(value: np.ndarray | int, text: int) -> np.ndarray:
        column = np.full(size, text, np.int64)
        column[before : before + len(kept)] = value
        return column

    patch, rows, columns = image.places
    return PromptRows(
        image=visual(0, -1),
        source=visual(np.arange(len(kept)), -1),
        patch=visual(patch, -1),
        rows=visual(rows, 1),
        columns=visual(columns, 1),
        entered=visual(len(kept), 0),
        total=visual(plan.total, 0),
        keep=visual(max(1, plan.total * 2 // 9), 0),
        positions=positions,
    )


def _language(
    graphs: list[Graph], weights: Reading, rows: Tensor, chunk: PromptRows, facts: Facts, ranges: Ranges
) -> dict[str, np.ndarray]:
    """Run the segments in order over the prompt, as shortened so far, and the forced tokens.

    Pruners see only the prompt.
    """
    arrays: dict[str, np.ndarray] = {}
    after = chunk.positions[..., -1:] + 1 + np.arange(rows.shape[1] - len(chunk))
    positions = np.concatenate([chunk.positions, after], axis=-1)
    carried: dict[str, Tensor] = {}
    behind: dict[str, Tensor] = {}
    embeds = half(rows)
    for graph in graphs:
        if graph.spec.in_place:
            entering = half(rows)
            behind, found = run_segment(graph, weights, entering, positions, len(chunk), ranges)
            arrays |= found
            rows = behind["hidden"]
        else:
            given = {"scored": entering, "inputs_embeds": embeds, **behind}
            before = {name: value[:, : len(chunk)] for name, value in given.items()} | carried
            out, recorded = _prune(graph, weights.pruning or weights, before, chunk, facts, ranges)
            arrays |= recorded
            count, forced = int(out["count"]), positions[..., len(chunk) :]
            rows = torch.cat([out["tokens"][:, :count], behind["hidden"][:, len(chunk) :]], dim=1)
            carried = {f"carried.{n[6:]}": v[:, :count] for n, v in out.items() if n.startswith("carry.")}
            chunk = chunk.take(out["kept"][0, :count].numpy())
            positions = np.concatenate([chunk.positions, forced], axis=-1)
            if facts.renumbers:
                positions = np.arange(len(positions))
                chunk = replace(chunk, positions=positions[:count])
    return arrays


def _prune(
    graph: Graph,
    weights: Reading,
    before: dict[str, Tensor],
    chunk: PromptRows,
    facts: Facts,
    ranges: Ranges,
) -> tuple[dict[str, Tensor], dict[str, np.ndarray]]:
    """Run a pruner between two segments. Return its outputs by name, and the recorded arrays."""
    known = chunk.feeds(facts.budgets.get(graph.spec.name, ()))
    values = before | {key: torch.from_numpy(value) for key, value in known.items()}
    inputs = [half(values[tensor.name]) for tensor in graph.spec.inputs]
    return run_graph(graph, weights, inputs, ranges)


def _embed(table: np.ndarray, ids: np.ndarray) -> Tensor:
    return torch.from_numpy(np.asarray(table[ids], np.float32))[None]


def _run(
    graph: Graph,
    weights: Reading,
    values: dict[str, Tensor],
    question: Question,
    facts: Facts,
    ranges: Ranges,
) -> tuple[dict[str, Tensor], dict[str, np.ndarray]]:
    """Run a graph before the language model. Return its outputs by name, and the recorded arrays."""
    inputs = []
    for tensor in graph.spec.inputs:
        if tensor.name == "pixel_values":
            value = half(_pixels(tensor, facts.layout))
        elif tensor.name in facts.layout.feeds:
            value = torch.from_numpy(facts.layout.feeds[tensor.name])
        elif tensor.name == "input_ids":
            value = torch.from_numpy(question.clip_ids)
        elif tensor.value is not None:
            value = torch.tensor(min(max(1, values["view"].numel() * 2 // 9), MOST_KEPT))
        else:
            value = half(values[tensor.name])
        inputs.append(value)
    return run_graph(graph, weights, inputs, ranges)


def _pixels(tensor: TensorSpec, plan: Layout) -> Tensor:
    """Return pixel values for as many tiles, or as many patches, as ``plan`` has."""
    rest = tensor.extent("opt")[1:]
    if len(rest) == 3:
        return _image((plan.tiles, *rest))
    generator = torch.Generator().manual_seed(0)
    return torch.randn(plan.total, *rest, generator=generator)


def _image(shape: tuple[int, ...]) -> Tensor:
    """Return a smooth random image with edges, from a fixed seed.

    It is enlarged coarse noise and one bright square.
    """
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randn(shape[0], shape[1], 8, 8, generator=generator)
    image = nn.functional.interpolate(coarse, shape[2:], mode="bilinear")
    height, width = shape[2] // 4, shape[3] // 4
    image[..., height : 2 * height, width : 2 * width] += 2
    return image

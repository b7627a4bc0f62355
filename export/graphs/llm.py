"""The graphs of the language model: one decoder, or its segments with the in-LLM pruners between them.

A decoder in one piece is the graph ``llm``. A decoder in segments is ``llm.0``, ``pruner.0``, ``llm.1``, ...
Pruners are numbered separately: when the decoder is cut only to be compiled in parts, two segments follow
each other. Segments share the decoder's weights under its names, and a pruner shares the weights of its
scoring layer. A segment returns the input of that layer as ``scored``, unless it is the segment's own input.
"""

from __future__ import annotations

from itertools import pairwise

import torch

from foveate.engines.errors import UserError
from foveate.engines.spec import FLOAT, Dim, GraphSpec, Symbol, TensorSpec
from foveate.export.graphs.graph import Graph
from foveate.export.networks.decoder import Decoder, Segment
from foveate.export.pruning.in_llm import Cut, Inside, PrunerInside
from foveate.export.spec import DecoderSpec, Parts

__all__ = ["language_graphs"]


def language_graphs(parts: Parts, method: Inside | None, llm_parts: int = 1) -> list[Graph]:
    """Return the graphs in the order in which they run, with at least ``llm_parts`` segments.

    Raises UserError (code 2) for cuts out of order, and for more parts than there are layers.
    """
    decoder: Decoder = parts.decoder
    spec, cuts = decoder.spec, _cuts(method, decoder.spec) if method else ()
    bounds = _bounds(spec.num_layers, cuts, llm_parts)
    if len(bounds) == 2:
        return [Graph(_spec("llm", spec, range(spec.num_layers), first=True), decoder)]
    graphs, stages = [], {cut.layer: stage for stage, cut in enumerate(cuts)}
    for number, (first, end) in enumerate(pairwise(bounds)):
        stage = stages.get(end)
        cut = None if stage is None else cuts[stage]
        graphs.append(_segment(decoder, number, first, end, cut))
        if cut is not None:
            graphs.append(_pruner(parts, method, stage, cut))
    return graphs


def _cuts(method: Inside, spec: DecoderSpec) -> tuple[Cut, ...]:
    cuts = method.cuts(spec)
    layers = [cut.layer for cut in cuts]
    if not layers or any(later <= earlier for earlier, later in pairwise(layers)):
        raise UserError(
            f"{method.name} cannot prune before layers {layers} | expected one or more, in ascending order "
            "| set other layers with --set",
            code=2,
        )
    return cuts


def _bounds(layers: int, cuts: tuple[Cut, ...], parts: int) -> list[int]:
    """Return the first layer of each segment, and the end of the last one.

    Segments begin at the ``cuts`` and, until there are ``parts``, evenly between them. No segment begins
    between a scoring layer and its cut, so there may be one segment less.
    """
    if not 1 <= parts <= layers:
        raise UserError(
            f"the language model cannot be cut into {parts} parts "
            f"| expected 1 to {layers}, the number of its layers | give another --llm-parts",
            code=2,
        )
    stretches = list(pairwise((0, *(cut.layer for cut in cuts), layers)))
    pieces = [1] * len(stretches)
    while sum(pieces) < parts:
        sizes = [(end - first) / count for (first, end), count in zip(stretches, pieces, strict=True)]
        pieces[sizes.index(max(sizes))] += 1
    latest, bounds = {cut.layer: cut.scored for cut in cuts}, {layers}
    for (first, end), count in zip(stretches, pieces, strict=True):
        starts = (first + (end - first) * piece // count for piece in range(count))
        bounds |= {min(start, latest.get(end, end)) for start in starts}
    return sorted(bounds)


def _segment(decoder: Decoder, number: int, first: int, end: int, cut: Cut | None) -> Graph:
    assert cut is None or first <= cut.scored, f"layer {cut.scored} lies before the cut at layer {first}"
    scored = cut.scored if cut and first < cut.scored < cut.layer else None
    spec = _spec(f"llm.{number}", decoder.spec, range(first, end), number == 0, scored is not None)
    return Graph(spec, Segment(decoder, first, end, scored), names=(("decoder.", "llm."),))


def _rows(spec: DecoderSpec) -> Symbol:
    return Symbol("tokens", 1, min(192, spec.max_positions), spec.max_positions)


def _positions(spec: DecoderSpec, length: Symbol) -> tuple[Dim, ...]:
    return (1, length) if spec.position_axes == 1 else (spec.position_axes, 1, length)


def _spec(name: str, spec: DecoderSpec, layers: range, first: bool, scored: bool = False) -> GraphSpec:
    length = _rows(spec)
    slots = Symbol("cache", 1, min(1024, spec.max_positions), spec.max_positions)
    cache = 1, spec.num_kv_heads, slots, spec.head_dim
    names = [f"{i}.{kind}" for i in layers for kind in ("key", "value")]
    final = layers.stop == spec.num_layers
    rows = 1, length, spec.hidden_size
    outputs = [TensorSpec("logits", FLOAT, (1, 1, spec.vocab_size))] if final else []
    outputs += [TensorSpec(out, FLOAT, rows) for out in ("hidden", "scored")[: 0 if final else 1 + scored]]
    return GraphSpec(
        name,
        inputs=(
            TensorSpec("inputs_embeds" if first else "tokens", FLOAT, rows),
            TensorSpec("position_ids", "int64", _positions(spec, length)),
            TensorSpec("write_index", "int64", (1,)),
            *((TensorSpec("last", "int64", (1,)),) if final else ()),
            *(TensorSpec(f"past.{name}", FLOAT, cache) for name in names),
        ),
        outputs=(*outputs, *(TensorSpec(f"present.{name}", FLOAT, cache) for name in names)),
        in_place=tuple((f"present.{name}", f"past.{name}") for name in names),
    )


def _pruner(parts: Parts, method: Inside, stage: int, cut: Cut) -> Graph:
    spec = parts.spec.decoder
    length = _rows(spec)
    rows, each = (1, length, spec.hidden_size), (1, length)
    possible = [
        TensorSpec("hidden", FLOAT, rows),
        TensorSpec("scored", FLOAT, rows),
        TensorSpec("inputs_embeds", FLOAT, rows),
        TensorSpec("image", "int64", each),
        TensorSpec("patch", "int64", each),
        TensorSpec("rows", "int64", each),
        TensorSpec("columns", "int64", each),
        TensorSpec("entered", "int64", each),
        TensorSpec("position_ids", "int64", _positions(spec, length)),
        TensorSpec("keep", "int64", each),
    ]
    wanted = {"hidden", "image", "keep", *method.reads(stage)}
    if cut.scored < cut.layer:
        wanted.add("scored")
    inputs = (
        *(t for t in possible if t.name in wanted),
        *(TensorSpec(f"carried.{name}", FLOAT, each) for name in method.carries if stage > 0),
    )
    outputs = (
        TensorSpec("tokens", FLOAT, rows),
        TensorSpec("kept", "int64", each),
        TensorSpec("count", "int64", (1,)),
        *(TensorSpec(f"carry.{name}", FLOAT, each) for name in method.carries),
    )
    with torch.device("meta"):
        module = PrunerInside(method, stage, tuple(tensor.name for tensor in inputs), spec)
    names = (("layer.", f"llm.layers.{cut.scored}."), ("norm.", "llm.norm."), ("rope_", "llm.rope_"))
    return Graph(GraphSpec(f"pruner.{stage}", inputs, outputs), module, names)

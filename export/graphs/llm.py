"""The graphs of the language model: one decoder, or its segments with the in-LLM pruners between them.

A decoder in one piece is the graph ``llm``. A decoder in segments is ``llm.0``, ``pruner.0``, ``llm.1``, ...
Pruners are numbered separately: when the decoder is cut only to be compiled in parts, two segments follow
each other. Segments share the decoder's weights under its names, and a pruner shares the weights of its
scoring layer. A segment returns the input of that layer as ``scored``, unless it is the segment's own input.
"""

from __future__ import annotations

from itertools import pairwise

from foveate.engines.errors import UserError
from foveate.engines.spec import FLOAT, GraphSpec, Symbol, TensorSpec
from foveate.export.graphs.graph import Graph
from foveate.export.graphs.in_llm_pruner import position_shape, prompt_length, stage_graph
from foveate.export.model_parts import ModelParts
from foveate.export.networks.decoder import Decoder, Segment
from foveate.export.pruning.in_llm import InLLMPruner, PruneLayer
from foveate.export.spec import DecoderSpec

__all__ = ["language_graphs"]


def language_graphs(parts: ModelParts, method: InLLMPruner | None, llm_parts: int = 1) -> list[Graph]:
    """Return the graphs in the order in which they run, with at least ``llm_parts`` segments.

    Raises UserError (code 2) for layers out of order, and for more parts than there are layers.
    """
    decoder, spec = parts.decoder, parts.decoder.spec
    places = () if method is None else _prune_layers(method, spec)
    bounds = _bounds(spec.num_layers, places, llm_parts)
    if len(bounds) == 2:
        return [Graph(_spec("llm", spec, range(spec.num_layers), first=True), decoder)]
    graphs: list[Graph] = []
    stages = {place.layer: stage for stage, place in enumerate(places)}
    for number, (first, end) in enumerate(pairwise(bounds)):
        stage = stages.get(end)
        place = None if stage is None else places[stage]
        graphs.append(_segment(decoder, number, first, end, place))
        if method is not None and stage is not None:
            graphs.append(stage_graph(spec, method, stage, places[stage]))
    return graphs


def _prune_layers(method: InLLMPruner, spec: DecoderSpec) -> tuple[PruneLayer, ...]:
    places = method.prune_layers(spec)
    layers = [place.layer for place in places]
    if not layers or any(later <= earlier for earlier, later in pairwise(layers)):
        raise UserError(
            f"{method.name} cannot prune before layers {layers} | expected one or more, in ascending order "
            "| set other layers with --set",
            code=2,
        )
    return places


def _bounds(layers: int, places: tuple[PruneLayer, ...], parts: int) -> list[int]:
    """Return the first layer of each segment, and the end of the last one.

    Segments begin at the ``places`` and, until there are ``parts``, evenly between them. No segment begins
    between a scoring layer and the layer before which it prunes, so there may be one segment less.
    """
    if not 1 <= parts <= layers:
        raise UserError(
            f"the language model cannot be cut into {parts} parts "
            f"| expected 1 to {layers}, the number of its layers | give another --llm-parts",
            code=2,
        )
    stretches = list(pairwise((0, *(place.layer for place in places), layers)))
    pieces = [1] * len(stretches)
    while sum(pieces) < parts:
        sizes = [(end - first) / count for (first, end), count in zip(stretches, pieces, strict=True)]
        pieces[sizes.index(max(sizes))] += 1
    latest, bounds = {place.layer: place.scored for place in places}, {layers}
    for (first, end), count in zip(stretches, pieces, strict=True):
        starts = (first + (end - first) * piece // count for piece in range(count))
        bounds |= {min(start, latest.get(end, end)) for start in starts}
    return sorted(bounds)


def _segment(decoder: Decoder, number: int, first: int, end: int, place: PruneLayer | None) -> Graph:
    assert place is None or first <= place.scored, f"layer {place.scored} lies before the segment's {first}"
    scored = place.scored if place and first < place.scored < place.layer else None
    spec = _spec(f"llm.{number}", decoder.spec, range(first, end), number == 0, scored is not None)
    return Graph(spec, Segment(decoder, first, end, scored), names=(("decoder.", "llm."),))


def _spec(name: str, spec: DecoderSpec, layers: range, first: bool, scored: bool = False) -> GraphSpec:
    length = prompt_length(spec)
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
            TensorSpec("position_ids", "int64", position_shape(spec)),
            TensorSpec("write_index", "int64", (1,)),
            *((TensorSpec("last", "int64", (1,)),) if final else ()),
            *(TensorSpec(f"past.{name}", FLOAT, cache) for name in names),
        ),
        outputs=(*outputs, *(TensorSpec(f"present.{name}", FLOAT, cache) for name in names)),
        in_place=tuple((f"present.{name}", f"past.{name}") for name in names),
    )

"""Build the graphs of a model's parts pruned by a method.

A graph is a module on the meta device with its interface.
"""

from __future__ import annotations

from dataclasses import replace

from foveate.engines.errors import UserError
from foveate.export import methods
from foveate.export.graphs.graph import Graph
from foveate.export.graphs.llm import language_graphs
from foveate.export.graphs.pre_llm_pruner import pruner_graph
from foveate.export.graphs.vision import encoder_graph, merging_encoder_graph, text_encoder_graph
from foveate.export.model_parts import ModelParts
from foveate.export.pruning.method import Method
from foveate.export.pruning.taps import TEXT_TAPS
from foveate.export.spec import ModelSpec

__all__ = ["assemble", "missing", "taps_of", "with_files_for"]


def assemble(parts: ModelParts, method: Method, llm_parts: int = 1) -> list[Graph]:
    """Return the graphs of ``parts`` pruned by ``method``, in the order in which they run.

    The language model has at least ``llm_parts`` segments. Raises UserError (code 2) when the family lacks a
    tap that the method reads.
    """
    _refuse_missing(parts.spec, method)
    if method.encoder_merger:
        return [merging_encoder_graph(parts, method.encoder_merger), *language_graphs(parts, None, llm_parts)]
    pruner, taps = method.pre_llm, taps_of(parts.spec, method)
    outputs = dict.fromkeys((pruner.source if pruner else "projected", *taps))
    graphs = [encoder_graph(parts, tuple(name for name in outputs if name not in TEXT_TAPS))]
    if "clip_text" in taps:
        graphs.append(text_encoder_graph(parts))
    if pruner:
        projector = parts.projector() if pruner.source == "features" else None
        graphs.append(pruner_graph(parts.spec, pruner, projector))
    return [*graphs, *language_graphs(parts, method.in_llm, llm_parts)]


def with_files_for(parts: ModelParts, method: Method) -> ModelParts:
    """Return ``parts`` with the files and the licence of CLIP's checkpoint, if the method compares with CLIP.

    Opens that checkpoint, and may download it. Raises UserError when it is missing or does not fit.
    """
    if parts.open_clip is None or "clip_image" not in taps_of(parts.spec, method):
        return parts
    found = parts.open_clip()
    return replace(parts, files=parts.files | found.files, licence=parts.licence | found.licence)


def taps_of(spec: ModelSpec, method: Method) -> tuple[str, ...]:
    """Return the names of the taps that ``method`` reads."""
    part = method.encoder_merger or method.pre_llm
    return part.taps(spec) if part else ()


def missing(spec: ModelSpec, method: Method) -> list[str]:
    """Return the names of the taps that ``method`` reads and the family does not offer, sorted.

    Taps of the question are always available.
    """
    offers = {tap.split(".")[0] for tap in taps_of(spec, method)}
    return sorted(offers - {*spec.taps, *TEXT_TAPS})


def _refuse_missing(spec: ModelSpec, method: Method) -> None:
    lacks = missing(spec, method)
    if lacks:
        part = method.encoder_merger or method.pre_llm
        able = [name for name in methods.names() if not missing(spec, methods.load(name))]
        raise UserError(
            f"{spec.family} has no {', '.join(lacks)}, which {part.name if part else method.name} reads "
            f"| it offers {', '.join(spec.taps)} | methods that work: {', '.join(able)}",
            code=2,
        )

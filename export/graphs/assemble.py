"""Build the graphs of ``Parts`` pruned by a method. A graph is a module on the meta device and its
GraphSpec."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from foveate.engines.errors import UserError
from foveate.engines.spec import FLOAT, Dim, GraphSpec, Symbol, TensorSpec
from foveate.export import methods
from foveate.export.graphs.graph import Graph
from foveate.export.graphs.llm import language_graphs
from foveate.export.pruning.combined import Pair
from foveate.export.pruning.method import Method
from foveate.export.spec import ModelSpec, Parts, VisionSpec

__all__ = ["TEXT_TAPS", "assemble", "missing", "tap_shape"]

TEXT_TAPS = ("text_embeds", "clip_text")
"""Taps that come from the question and not from the vision encoder. The runtime feeds them."""

_MAX_WORDS = 512
_MAX_SEGMENTS = 8


def assemble(parts: Parts, method: Method | Pair, llm_parts: int = 1) -> list[Graph]:
    """Return the graphs of ``parts`` pruned by ``method``, in the order in which they run.

    The language model has at least ``llm_parts`` segments. Raises UserError (code 2) when the family lacks a
    tap that the method reads.
    """
    if method.encoder:
        _refuse_missing(parts.spec, method.encoder)
        return [_merging_encoder(parts, method.encoder), *language_graphs(parts, None, llm_parts)]
    before = method.before
    taps = before.taps(parts.spec) if before else ()
    if before:
        _refuse_missing(parts.spec, before)
    seen = dict.fromkeys((before.source if before else "projected", *taps))
    graphs = [_vision_encoder(parts, tuple(name for name in seen if name not in TEXT_TAPS))]
    if "clip_text" in taps:
        graphs.append(_text_encoder(parts))
    if before:
        graphs.append(_pruner(parts, before, taps))
    return [*graphs, *language_graphs(parts, method.inside, llm_parts)]


def _refuse_missing(spec: ModelSpec, method: Method) -> None:
    lacks = missing(spec, method)
    if lacks:
        able = [name for name in methods.names() if not missing(spec, methods.load(name))]
        raise UserError(
            f"{spec.family} has no {', '.join(lacks)}, which {method.name} reads "
            f"| it offers {', '.join(spec.taps)} | methods that work: {', '.join(able)}",
            code=2,
        )


def missing(spec: ModelSpec, method: Method) -> list[str]:
    """Return the names of the taps that ``method`` reads and the family does not offer, sorted.

    Taps of the question are always available.
    """
    offers = {tap.split(".")[0] for tap in method.taps(spec)}
    return sorted(offers - {*spec.taps, *TEXT_TAPS})


class VisionEncoder(nn.Module):
    """The graph ``vision_encoder``. It returns only ``outputs``; other outputs of the family's module are not
    exported."""

    def __init__(self, vision: nn.Module, outputs: tuple[str, ...]) -> None:
        super().__init__()
        self.vision, self.outputs = vision, outputs

    def forward(self, *inputs: Tensor) -> dict[str, Tensor]:
        found = self.vision(*inputs)
        return {name: found[name] for name in self.outputs}


def _vision_encoder(parts: Parts, outputs: tuple[str, ...]) -> Graph:
    module = parts.vision(tuple(name for name in outputs if name != "projected"))
    return _encoder_graph(
        parts.spec, module, tuple(TensorSpec(name, FLOAT, tap_shape(parts.spec, name)) for name in outputs)
    )


def _merging_encoder(parts: Parts, method: Method) -> Graph:
    module = parts.vision((), method.merging(parts.spec))
    rows = method.fixed_keep(parts.spec)
    vision = parts.spec.vision
    return _encoder_graph(
        parts.spec, module, _survivors(parts.spec, method, rows, vision.tiles, vision.tokens)
    )


def _encoder_graph(spec: ModelSpec, module: nn.Module, outputs: tuple[TensorSpec, ...]) -> Graph:
    return Graph(
        GraphSpec("vision_encoder", inputs=spec.vision.inputs, outputs=outputs),
        VisionEncoder(module, tuple(tensor.name for tensor in outputs)),
        names=(("vision.", "vision_encoder."),),
    )


def _survivors(spec: ModelSpec, method: Method, rows: Dim, batch: Dim, tokens: Dim) -> tuple[TensorSpec, ...]:
    """Return the outputs of a pruner: tokens, kept, count and, for methods that merge, owner."""
    found = (
        TensorSpec("tokens", FLOAT, (batch, rows, spec.decoder.hidden_size)),
        TensorSpec("kept", "int64", (batch, rows)),
        TensorSpec("count", "int64", (batch,)),
    )
    owner = TensorSpec("owner", "int64", (batch, tokens))
    return (*found, owner) if method.merges else found


def tap_shape(spec: ModelSpec, name: str) -> tuple[Dim, ...]:
    """Return the shape of ``projected`` or of a tap."""
    vision, tiles, tokens = spec.vision, spec.vision.tiles, spec.vision.tokens
    head_dim = vision.hidden_size // vision.num_heads
    joint = vision.joint_size or 0
    shapes: dict[str, tuple[Dim, ...]] = {
        "projected": (tiles, tokens, spec.decoder.hidden_size),
        "features": (tiles, tokens, vision.feature_size),
        "cls_feature": (tiles, 1, vision.hidden_size),
        "cls_attention": (tiles, tokens),
        "cls_attention_heads": (tiles, vision.num_heads, tokens),
        "received_attention": (tiles, tokens),
        "keys": (tiles, tokens, head_dim),
        "hidden": (tiles, tokens, vision.hidden_size),
        "clip_image": (tiles, tokens, joint),
        "clip_text": (1, Symbol("segments", 1, 1, _MAX_SEGMENTS), joint),
        "text_embeds": (1, Symbol("words", 1, 16, _MAX_WORDS), spec.decoder.hidden_size),
    }
    return shapes[name.split(".")[0]]


def _text_encoder(parts: Parts) -> Graph:
    if parts.text_encoder is None:
        raise UserError(
            "the method asks for CLIP's text tower | this checkpoint comes without one "
            "| name the CLIP checkpoint of its vision tower with --clip, or choose another relevance"
        )
    segments = Symbol("segments", 1, 1, _MAX_SEGMENTS)
    return Graph(
        GraphSpec(
            "text_encoder",
            inputs=(TensorSpec("input_ids", "int64", (segments, parts.text_encoder.context_length)),),
            outputs=(TensorSpec("clip_text", FLOAT, tap_shape(parts.spec, "clip_text")),),
        ),
        parts.text_encoder,
    )


class Pruner(nn.Module):
    """The graph ``pruner`` of a pre-LLM pruner: takes ``keep``, visual tokens and taps, and returns the kept
    tokens.

    * ``grid``: rows and columns of the tokens. None: those of ``view``, an input after ``keep``.
    * ``trained``: the method's own network. Its outputs are added to the taps.
    * ``projector``: runs last, for methods that act on the features before it.
    """

    def __init__(
        self,
        method: Method,
        taps: tuple[str, ...],
        grid: tuple[int, int] | None,
        trained: nn.Module | None = None,
        projector: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.method, self.taps, self.grid = method, taps, grid
        self.trained, self.projector = trained, projector

    def forward(self, keep: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
        names, grid = (self.method.source, *self.taps), self.grid
        if grid is None:
            view, *inputs = inputs
            grid = tuple(view.shape)
            tile = view.reshape(-1)[:1] // inputs[0].shape[1]
            inputs = [_seen(view, tile, name, value) for name, value in zip(names, inputs, strict=True)]
        tokens, *rest = inputs
        budget = keep.item()
        torch._check(budget >= 1)
        torch._check(budget <= tokens.shape[1])
        values = dict(zip(self.taps, rest, strict=True))
        if self.trained is not None:
            values |= self.trained(values, budget)
        rows, kept, count, *owner = self.method.reduce(tokens, values, budget, grid)
        if self.projector is not None:
            rows = self.projector(rows)
            if not self.method.fills:  # rows behind count must be 0, but a projector adds biases
                valid = torch.arange(rows.shape[1], device=rows.device) < count[:, None]
                rows = torch.where(valid[:, :, None], rows, torch.zeros_like(rows[:, :1, :1]))
        return rows, kept, count, *owner


def _seen(view: Tensor, tile: Tensor, name: str, value: Tensor) -> Tensor:
    """Select the tokens of ``view [rows,columns]`` from an output ``[tiles,N,...]`` of the vision encoder.

    ``tile [1]`` is the tile of the first token.
    """
    offer = name.split(".")[0]
    if offer in TEXT_TAPS:
        return value
    if offer == "cls_feature":  # [tiles,1,D]
        return value.index_select(0, tile)
    if offer == "cls_attention_heads":  # [tiles,H,N]
        return _seen(view, tile, "", value.transpose(1, 2)).transpose(1, 2)
    return value.flatten(0, 1).index_select(0, view.reshape(-1))[None]


def _pruner(parts: Parts, method: Method, taps: tuple[str, ...]) -> Graph:
    spec, vision = parts.spec, parts.spec.vision
    tokens = vision.image_tokens if method.whole else vision.num_tokens
    budget = Symbol("keep", 1, max(1, tokens * 2 // 9), tokens)
    wanted = tuple(dict.fromkeys((method.source, *taps)))
    with torch.device("meta"):
        trained = method.module(spec)
    return Graph(
        GraphSpec(
            "pruner",
            inputs=(
                TensorSpec("keep", "int64", (), value=budget),
                *((_view(vision, method),) if vision.varies else ()),
                *(TensorSpec(name, FLOAT, tap_shape(spec, name)) for name in wanted),
            ),
            outputs=_survivors(
                spec,
                method,
                budget,
                1,
                Symbol("seen", 1, tokens, tokens) if vision.varies else tokens,
            ),
        ),
        Pruner(
            method,
            taps,
            None if vision.varies else vision.grid,
            trained,
            parts.projector() if method.source == "features" else None,
        ),
        names=(("trained.", "pruner."), ("projector.", "vision_encoder.projector.")),
    )


def _view(vision: VisionSpec, method: Method) -> TensorSpec:
    """Return the input with the indices of the vision encoder's tokens that the pruner sees, counted tile
    after tile.

    For a method with ``whole`` all tokens of the image are one row.
    """
    (rows, columns), side = vision.grid, vision.longest_side
    if method.whole:
        return TensorSpec(
            "view", "int64", (1, Symbol("columns", 1, vision.image_tokens, vision.image_tokens))
        )
    return TensorSpec("view", "int64", (Symbol("rows", 1, rows, side), Symbol("columns", 1, columns, side)))

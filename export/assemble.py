"""Assemble: Parts and a Method become graphs. Each graph is a module without memory and its GraphSpec."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from foveate.engines.errors import UserError
from foveate.engines.spec import FLOAT, Dim, GraphSpec, Symbol, TensorSpec
from foveate.export import methods
from foveate.export.graph import Graph
from foveate.export.methods.base import Method
from foveate.export.pair import Pair
from foveate.export.parts import ModelSpec, Parts
from foveate.export.segments import language_graphs

__all__ = ["TEXT_TAPS", "assemble", "tap_shape"]

TEXT_TAPS = ("text_embeds", "clip_text")
"""Taps that come from the question and not from the vision encoder; the runtime feeds them."""

_MAX_WORDS = 512
_MAX_SEGMENTS = 8


def assemble(parts: Parts, method: Method | Pair) -> list[Graph]:
    """The graphs of ``parts`` pruned by ``method``, in the order in which they run."""
    if method.encoder:
        _refuse_missing(parts.spec, method.encoder)
        return [_merging_encoder(parts, method.encoder), *language_graphs(parts, None)]
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
    return [*graphs, *language_graphs(parts, method.inside)]


def _refuse_missing(spec: ModelSpec, method: Method) -> None:
    missing = _missing(spec, method)
    if missing:
        able = [name for name in methods.names() if not _missing(spec, methods.load(name))]
        raise UserError(
            f"{spec.family} has no {', '.join(missing)}, which {method.name} reads "
            f"| it offers {', '.join(spec.taps)} | methods that work: {', '.join(able)}",
            code=2,
        )


def _missing(spec: ModelSpec, method: Method) -> list[str]:
    """Taps that the family does not offer; what comes from the question needs no offer."""
    offers = {tap.split(".")[0] for tap in method.taps(spec)}
    return sorted(offers - {*spec.taps, *TEXT_TAPS})


class VisionEncoder(nn.Module):
    """The graph ``vision_encoder``: of what the family's module gives only ``outputs``. What nobody reads is not exported."""

    def __init__(self, vision: nn.Module, outputs: tuple[str, ...]) -> None:
        super().__init__()
        self.vision, self.outputs = vision, outputs

    def forward(self, pixel_values: Tensor) -> dict[str, Tensor]:
        found = self.vision(pixel_values)
        return {name: found[name] for name in self.outputs}


def _vision_encoder(parts: Parts, outputs: tuple[str, ...]) -> Graph:
    module = parts.vision(tuple(name for name in outputs if name != "projected"))
    return _encoder_graph(
        parts.spec, module, tuple(TensorSpec(name, FLOAT, tap_shape(parts.spec, name)) for name in outputs)
    )


def _merging_encoder(parts: Parts, method: Method) -> Graph:
    module = parts.vision((), method.merging(parts.spec))
    return _encoder_graph(parts.spec, module, _survivors(parts.spec, method, method.fixed_keep(parts.spec)))


def _encoder_graph(spec: ModelSpec, module: nn.Module, outputs: tuple[TensorSpec, ...]) -> Graph:
    pixels = TensorSpec("pixel_values", FLOAT, (1, 3, spec.vision.image_size, spec.vision.image_size))
    return Graph(
        GraphSpec("vision_encoder", inputs=(pixels,), outputs=outputs),
        VisionEncoder(module, tuple(tensor.name for tensor in outputs)),
        names=(("vision.", "vision_encoder."),),
    )


def _survivors(spec: ModelSpec, method: Method, rows: Dim) -> tuple[TensorSpec, ...]:
    """What a pruner gives: ``rows`` of them, and what is known of them."""
    found = (
        TensorSpec("tokens", FLOAT, (1, rows, spec.decoder.hidden_size)),
        TensorSpec("kept", "int64", (1, rows)),
        TensorSpec("count", "int64", (1,)),
    )
    owner = TensorSpec("owner", "int64", (1, spec.vision.num_tokens))
    return (*found, owner) if method.merges else found


def tap_shape(spec: ModelSpec, name: str) -> tuple[Dim, ...]:
    """The shape of ``projected`` or of a tap, as the table of design section 3 gives it."""
    vision, tokens = spec.vision, spec.vision.num_tokens
    head_dim = vision.hidden_size // vision.num_heads
    joint = vision.joint_size or 0
    shapes: dict[str, tuple[Dim, ...]] = {
        "projected": (1, tokens, spec.decoder.hidden_size),
        "features": (1, tokens, vision.hidden_size),
        "cls_feature": (1, 1, vision.hidden_size),
        "cls_attention": (1, tokens),
        "cls_attention_heads": (1, vision.num_heads, tokens),
        "received_attention": (1, tokens),
        "keys": (1, tokens, head_dim),
        "hidden": (1, tokens, vision.hidden_size),
        "clip_image": (1, tokens, joint),
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
    """The graph ``pruner``: visual tokens, taps and ``keep`` in, the surviving tokens out.

    ``trained`` is the method's own network; what it makes of the taps joins them. ``projector`` comes last in methods
    that act before it.
    """

    def __init__(
        self,
        method: Method,
        taps: tuple[str, ...],
        grid: tuple[int, int],
        trained: nn.Module | None = None,
        projector: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.method, self.taps, self.grid = method, taps, grid
        self.trained, self.projector = trained, projector

    def forward(self, keep: Tensor, tokens: Tensor, *taps: Tensor) -> tuple[Tensor, ...]:
        budget = keep.item()
        torch._check(budget >= 1)
        torch._check(budget <= tokens.shape[1])
        values = dict(zip(self.taps, taps, strict=True))
        if self.trained is not None:
            values |= self.trained(values, budget)
        rows, kept, count, *owner = self.method.reduce(tokens, values, budget, self.grid)
        if self.projector is not None:
            rows = self.projector(rows)
            if not self.method.fills:  # rows behind are 0, and a projector has biases
                valid = torch.arange(rows.shape[1], device=rows.device) < count[:, None]
                rows = torch.where(valid[:, :, None], rows, torch.zeros_like(rows[:, :1, :1]))
        return rows, kept, count, *owner


def _pruner(parts: Parts, method: Method, taps: tuple[str, ...]) -> Graph:
    spec = parts.spec
    tokens = spec.vision.num_tokens
    budget = Symbol("keep", 1, max(1, tokens * 2 // 9), tokens)
    wanted = tuple(dict.fromkeys((method.source, *taps)))
    with torch.device("meta"):
        trained = method.module(spec)
    return Graph(
        GraphSpec(
            "pruner",
            inputs=(
                TensorSpec("keep", "int64", (), value=budget),
                *(TensorSpec(name, FLOAT, tap_shape(spec, name)) for name in wanted),
            ),
            outputs=_survivors(spec, method, budget),
        ),
        Pruner(
            method,
            taps,
            spec.vision.grid,
            trained,
            parts.projector() if method.source == "features" else None,
        ),
        names=(("trained.", "pruner."), ("projector.", "vision_encoder.projector.")),
    )

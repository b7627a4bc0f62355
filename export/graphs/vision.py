"""The graphs ``vision_encoder`` and ``text_encoder``."""

from __future__ import annotations

from torch import Tensor, nn

from foveate.engines.errors import UserError
from foveate.engines.spec import FLOAT, GraphSpec, Symbol, TensorSpec
from foveate.export.graphs.graph import Graph
from foveate.export.graphs.pre_llm_pruner import remaining
from foveate.export.model_parts import ModelParts
from foveate.export.pruning.encoder_merging import EncoderMerger
from foveate.export.pruning.taps import MAX_SEGMENTS, tap_shape
from foveate.export.spec import ModelSpec

__all__ = ["VisionEncoder", "encoder_graph", "merging_encoder_graph", "text_encoder_graph"]


class VisionEncoder(nn.Module):
    """The graph ``vision_encoder``.

    It returns only ``outputs``; other outputs of the family's module are not exported.
    """

    def __init__(self, vision: nn.Module, outputs: tuple[str, ...]) -> None:
        super().__init__()
        self.vision, self.outputs = vision, outputs

    def forward(self, *inputs: Tensor) -> dict[str, Tensor]:
        """Return the outputs by name. ``inputs`` are those of the vision encoder's spec."""
        found = self.vision(*inputs)
        return {name: found[name] for name in self.outputs}


def encoder_graph(parts: ModelParts, outputs: tuple[str, ...]) -> Graph:
    """Return the vision encoder with the ``outputs`` ``projected`` and taps."""
    module = parts.vision(tuple(name for name in outputs if name != "projected"))
    tensors = tuple(TensorSpec(name, FLOAT, tap_shape(parts.spec, name)) for name in outputs)
    return _graph(parts.spec, module, tensors)


def merging_encoder_graph(parts: ModelParts, method: EncoderMerger) -> Graph:
    """Return the vision encoder in whose layers ``method`` merges patches. It has the outputs of a pruner."""
    spec, vision = parts.spec, parts.spec.vision
    module = parts.vision((), method.merging(spec))
    rows = method.rows(spec)
    return _graph(spec, module, remaining(spec.decoder.hidden_size, rows, vision.tiles, vision.tokens))


def _graph(spec: ModelSpec, module: nn.Module, outputs: tuple[TensorSpec, ...]) -> Graph:
    return Graph(
        GraphSpec("vision_encoder", inputs=spec.vision.inputs, outputs=outputs),
        VisionEncoder(module, tuple(tensor.name for tensor in outputs)),
        names=(("vision.", "vision_encoder."),),
    )


def text_encoder_graph(parts: ModelParts) -> Graph:
    """Return CLIP's text encoder. Raises UserError for a model without one."""
    if parts.text_encoder is None:
        raise UserError(
            "the method asks for CLIP's text tower | this checkpoint comes without one "
            "| name the CLIP checkpoint of its vision tower with --clip, or choose another relevance"
        )
    segments = Symbol("segments", 1, 1, MAX_SEGMENTS)
    return Graph(
        GraphSpec(
            "text_encoder",
            inputs=(TensorSpec("input_ids", "int64", (segments, parts.text_encoder.context_length)),),
            outputs=(TensorSpec("clip_text", FLOAT, tap_shape(parts.spec, "clip_text")),),
        ),
        parts.text_encoder,
    )

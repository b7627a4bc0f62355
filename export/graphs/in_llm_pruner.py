"""The graph ``pruner.<stage>``: an in-LLM pruner with the weights of its scoring layer."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from foveate.engines.spec import FLOAT, Dim, GraphSpec, Symbol, TensorSpec
from foveate.export.graphs.graph import Graph
from foveate.export.networks.decoder import RMSNorm
from foveate.export.pruning.in_llm import InLLMPruner, PruneLayer
from foveate.export.pruning.prompt_state import PromptState, ScoringLayer
from foveate.export.spec import DecoderSpec

__all__ = ["InLLMPrunerModule", "position_shape", "prompt_length", "stage_graph"]


class InLLMPrunerModule(nn.Module):
    """The graph ``pruner.<stage>``: computes ``InLLMPruner.prune``. ``names`` are its inputs, in order."""

    rope_cos: Tensor
    rope_sin: Tensor

    def __init__(self, method: InLLMPruner, stage: int, names: tuple[str, ...], spec: DecoderSpec) -> None:
        super().__init__()
        self.method, self.stage, self.names, self.spec = method, stage, names, spec
        self.layer, self.norm = ScoringLayer(spec), RMSNorm(spec.hidden_size, spec.rms_norm_eps)
        if "position_ids" in names:
            shape = spec.max_positions, spec.head_dim // 2
            self.register_buffer("rope_cos", torch.empty(shape), persistent=False)
            self.register_buffer("rope_sin", torch.empty(shape), persistent=False)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Return ``tokens``, ``kept``, ``count`` and the carried values."""
        given = dict(zip(self.names, inputs, strict=True))
        hidden = given.pop("hidden")
        carried = {name: given.pop(f"carried.{name}") for name in self.method.carries if self.stage > 0}
        state = PromptState(
            hidden=hidden,
            scored=given.pop("scored", hidden),
            image=given.pop("image"),
            keep=given.pop("keep"),
            layer=self.layer,
            norm=self.norm,
            carried=carried,
            rope=(self.rope_cos, self.rope_sin) if "position_ids" in given else None,
            extra=given,
        )
        tokens, kept, count, carry = self.method.prune(self.stage, state)
        return tokens, kept, count, *carry


def prompt_length(spec: DecoderSpec) -> Symbol:
    """Return the dimension of the prompt's rows."""
    return Symbol("tokens", 1, min(192, spec.max_positions), spec.max_positions)


def position_shape(spec: DecoderSpec) -> tuple[Dim, ...]:
    """Return the shape of ``position_ids``: ``[1,T]``, or ``[3,1,T]`` with M-RoPE."""
    length = prompt_length(spec)
    return (1, length) if spec.position_axes == 1 else (spec.position_axes, 1, length)


def stage_graph(spec: DecoderSpec, method: InLLMPruner, stage: int, place: PruneLayer) -> Graph:
    """Return the graph ``pruner.<stage>``, which prunes at ``place``."""
    length = prompt_length(spec)
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
        TensorSpec("position_ids", "int64", position_shape(spec)),
        TensorSpec("keep", "int64", each),
    ]
    wanted = {"hidden", "image", "keep", *method.extra_inputs(stage)}
    if place.scored < place.layer:
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
        module = InLLMPrunerModule(method, stage, tuple(tensor.name for tensor in inputs), spec)
    names = (("layer.", f"llm.layers.{place.scored}."), ("norm.", "llm.norm."), ("rope_", "llm.rope_"))
    return Graph(GraphSpec(f"pruner.{stage}", inputs, outputs), module, names)

"""Export to ONNX leaves the traced module as it was."""

from __future__ import annotations

import torch

from foveate.export import methods
from foveate.export.graphs.pre_llm_pruner import pruner_graph
from foveate.export.graphs.trace import trace
from foveate.export.models import llava


def test_tracing_in_half_precision_does_not_change_the_module():
    parts, method = llava.tiny(), methods.load("visionzip").pre_llm
    graph = pruner_graph(parts.spec, method, parts.projector())
    before = {name: (value.dtype, value.shape) for name, value in graph.module.named_parameters()}
    weights = [
        value for value in trace(graph, "float16").graph.initializers.values() if not value.const_value
    ]
    assert len(weights) == len(before) == 4 and {value.dtype.name for value in weights} == {"FLOAT16"}
    assert {dtype for dtype, _ in before.values()} == {torch.float32} and graph.module.training
    assert before == {name: (value.dtype, value.shape) for name, value in graph.module.named_parameters()}

"""One traced pruner for images of any size: its graph serves every shape as torch does."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
import torch
from often import often

from foveate.engines.errors import UserError
from foveate.engines.ort.backend import onnxruntime
from foveate.engines.spec import Symbol
from foveate.export import methods
from foveate.export.graphs.assemble import assemble
from foveate.export.graphs.graph import Graph
from foveate.export.graphs.trace import trace
from foveate.export.models import qwen2_5_vl

SHAPES = [(3, 7), (8, 8), (1, 5), (9, 6), (2, 2), (4, 12)]


def _graph(name: str) -> Graph | None:
    try:
        graphs = assemble(qwen2_5_vl.tiny(), methods.load(name))
    except UserError:  # the family lacks what it reads
        return None
    found = next((graph for graph in graphs if graph.spec.name == "pruner"), None)
    return None if found is None or found.module.trained is not None else found


GRAPHS = {name: graph for name in methods.names() if (graph := _graph(name))}


def given(graph: Graph, shape: tuple[int, int], keep: int, seed: int) -> dict[str, torch.Tensor]:
    """Return an image of ``shape`` somewhere among 64 tokens, in a random order.

    Methods that see the whole image get a list.
    """
    generator = torch.Generator().manual_seed(seed)
    sizes = {"rows": shape[0], "columns": shape[1], "tokens": 64, "words": 5}
    found = {}
    for tensor in graph.spec.inputs:
        extents = [sizes[d.name] if isinstance(d, Symbol) else d for d in tensor.shape]
        values = torch.randn(extents, generator=generator)
        found[tensor.name] = values.softmax(-1) if "attention" in tensor.name else values
    rows = sizes["rows"] if isinstance(graph.spec.input("view").shape[0], Symbol) else 1
    view = torch.randperm(64, generator=generator)[: shape[0] * shape[1]].reshape(rows, -1)
    return found | {"keep": torch.tensor(keep), "view": view}


def test_most_methods_are_tried():
    assert {"cdpruner", "divprune", "fsr", "sppruner", "vispruner", "vscan"} <= GRAPHS.keys()


@pytest.mark.parametrize("name", often(GRAPHS))
def test_one_graph_serves_every_shape(name, tmp_path):
    graph = GRAPHS[name]
    ir.save(trace(graph, "float32"), tmp_path / "pruner.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "pruner.onnx", providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_outputs()]
    for seed, shape in enumerate(SHAPES):
        size = shape[0] * shape[1]
        for keep in {1, size // 3 + 1, size}:
            feeds = given(graph, shape, keep, seed)
            with torch.no_grad():
                ours = graph.module(*(feeds[tensor.name] for tensor in graph.spec.inputs))
            answer = session.run(None, {key: value.numpy() for key, value in feeds.items()})
            found = dict(zip(names, answer, strict=True))
            for tensor, expected in zip(graph.spec.outputs, ours, strict=True):
                if expected.is_floating_point():
                    np.testing.assert_allclose(found[tensor.name], expected, atol=1e-5, err_msg=str(shape))
                else:
                    np.testing.assert_array_equal(found[tensor.name], expected, err_msg=str((shape, keep)))

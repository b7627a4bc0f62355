"""Shared by tests of pre-LLM pruners: a small model's sizes, random inputs, and the graph in ONNX."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch

from foveate.engines.ort.backend import onnxruntime
from foveate.engines.spec import GraphSpec, Symbol
from foveate.export.graphs.graph import Graph
from foveate.export.graphs.pre_llm_pruner import pruner_graph
from foveate.export.graphs.trace import trace
from foveate.export.other_checkpoints import pruner_weights
from foveate.export.pruning.pre_llm import PreLLMPruner
from foveate.export.pruning.taps import tap_shape
from foveate.export.spec import ClipVisionSpec, DecoderSpec, ModelSpec

SIZES = {"words": 5, "segments": 2}


class Bench:
    """A model's numbers with a ``grid`` of one's choice, and what a pruner needs from it."""

    def __init__(self, grid: tuple[int, int] = (12, 12), width: int = 48, vision_width: int = 32) -> None:
        vision = _Vision(24, 2, vision_width, 64, 4, 3, "gelu", 1e-5, joint_size=24)
        object.__setattr__(vision, "shape", grid)
        offers = (
            "features cls_feature cls_attention cls_attention_heads received_attention keys hidden clip_image"
        )
        decoder = DecoderSpec(width, 64, 2, 4, 2, 12, 100, 1e-5, 1e4, 4096, False)
        self.spec = ModelSpec("bench", vision, decoder, tuple(offers.split()))
        self.grid, self.size = grid, grid[0] * grid[1]

    def inputs(
        self, method: PreLLMPruner, seed: int, batch: int = 1, dtype: str = "float32"
    ) -> dict[str, torch.Tensor]:
        """Return tokens (under ``method.source``) and every tap of the method; attention rows add up to 1."""
        generator = torch.Generator().manual_seed(seed)
        found = {}
        for name in (method.source, *method.taps(self.spec)):
            shape = [SIZES[d.name] if isinstance(d, Symbol) else d for d in tap_shape(self.spec, name)]
            values = torch.randn([batch, *shape[1:]], generator=generator)
            found[name] = (values.softmax(-1) if "attention" in name else values).to(getattr(torch, dtype))
        return found

    def reduce(
        self, method: PreLLMPruner, inputs: dict[str, torch.Tensor], keep: int
    ) -> tuple[torch.Tensor, ...]:
        taps = {name: value for name, value in inputs.items() if name in method.taps(self.spec)}
        if (network := method.module(self.spec)) is not None:
            dtype = inputs[method.source].dtype
            network.load_state_dict(pruner_weights.dummy(network))
            with torch.no_grad():
                taps |= network.to(dtype).eval()(taps, keep)
        return method.reduce(inputs[method.source], taps, keep, self.grid)

    def graph(self, method: PreLLMPruner) -> Graph:
        """The pruner as ``assemble`` makes it, without a projector."""
        return pruner_graph(self.spec, method)

    def save(
        self,
        method: PreLLMPruner,
        path: Path,
        dtype: str = "float32",
        weights: dict[str, torch.Tensor] | None = None,
    ) -> GraphSpec:
        """``weights`` are those of the method's trained network, by default dummies."""
        graph = self.graph(method)
        model = trace(graph, dtype)
        network = method.module(self.spec)
        found = weights or (pruner_weights.dummy(network) if network else {})
        for name, value in model.graph.initializers.items():
            if value.const_value is None:
                value.const_value = ir.tensor(
                    found[name.removeprefix("pruner.")].to(getattr(torch, dtype)).numpy(), name=name
                )
        ir.save(model, path)
        return graph.spec.typed(dtype)

    def session(self, method: PreLLMPruner, folder: Path, dtype: str = "float32") -> Session:
        self.save(method, folder / "pruner.onnx", dtype)
        return self.open(folder / "pruner.onnx")

    @staticmethod
    def open(path: Path) -> Session:
        return Session(path)


@dataclasses.dataclass(frozen=True)
class _Vision(ClipVisionSpec):
    """Grids need not be square here."""

    @property
    def grid(self) -> tuple[int, int]:
        return self.__dict__["shape"]


class Session:
    """ONNX Runtime on two threads, torch tensors in and out."""

    def __init__(self, path: Path) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 2
        self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def __call__(self, inputs: dict[str, torch.Tensor], keep: int) -> list[torch.Tensor]:
        feeds: dict[str, Any] = {name: value.numpy() for name, value in inputs.items()}
        return [
            torch.from_numpy(x) for x in self.session.run(None, feeds | {"keep": np.array(keep, np.int64)})
        ]


@pytest.fixture
def bench() -> type[Bench]:
    return Bench
